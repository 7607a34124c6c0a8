#ifndef QUERN_SERVICES_QUANTIZER_TEXT_FILE_H_
#define QUERN_SERVICES_QUANTIZER_TEXT_FILE_H_

// Texts that users bring: .jsonl (one object with a string `text` a line), or plain text.

#include <absl/functional/function_ref.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>
#include <vector>

#include "core/base/json.h"

namespace quern {

// The file's documents in order: the texts of a .jsonl; a plain text cut at blank lines into pieces
// of some kilobytes. Empty ones are left out, at least one is returned. INVALID_ARGUMENT naming
// file and line: no regular file, over 1 GiB, a line of a .jsonl over 16 MiB or without `text`,
// bytes that are not UTF-8, nothing but blanks.
absl::StatusOr<std::vector<std::string>> ReadDocuments(absl::string_view path);

// All of the file as one text: the documents of a .jsonl joined by blank lines. Same errors.
absl::StatusOr<std::string> ReadText(absl::string_view path);

// Calls `visit(object, where)` for each line of a .jsonl that is not blank; `where` names file and
// line. Ends with the first error: its own, those of the file and of lines as above, but for
// `text`.
absl::Status ForEachJsonLine(
    absl::string_view path,
    absl::FunctionRef<absl::Status(const JsonObject& object, const std::string& where)> visit);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_TEXT_FILE_H_

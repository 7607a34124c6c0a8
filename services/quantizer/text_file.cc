#include "services/quantizer/text_file.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <utility>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 30;
constexpr size_t kMaxLineBytes = size_t{16} << 20;
// Long enough to fill a sequence of training, short enough for a fair mix of a book's parts.
constexpr size_t kPieceBytes = 8192;

absl::Status Wrong(absl::string_view path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

absl::StatusOr<MappedFile> Open(absl::string_view path) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) {
    if (absl::IsFailedPrecondition(file.status())) {
      return absl::InvalidArgumentError(file.status().message());
    }
    return file.status();
  }
  if (file->size_bytes() > kMaxFileBytes) {
    return Wrong(path, absl::StrCat("has ", file->size_bytes(), " bytes, at most ", kMaxFileBytes,
                                    " are read; use a part of it"));
  }
  if (!IsUtf8(file->bytes())) return Wrong(path, "is not UTF-8 text");
  return file;
}

bool IsBlank(absl::string_view text) { return absl::StripAsciiWhitespace(text).empty(); }

// Takes the next line, without its end, off the front of `text`.
absl::string_view TakeLine(absl::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  const absl::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return line;
}

std::vector<std::string> Pieces(absl::string_view text) {
  std::vector<std::string> pieces;
  std::string piece;
  const auto finish = [&] {
    if (!IsBlank(piece)) pieces.push_back(std::move(piece));
    piece.clear();
  };
  while (!text.empty()) {
    const absl::string_view line = TakeLine(text);
    if (IsBlank(line) && piece.size() >= kPieceBytes) {
      finish();
    } else {
      absl::StrAppend(&piece, line, "\n");
    }
  }
  finish();
  return pieces;
}

}  // namespace

absl::Status ForEachJsonLine(
    absl::string_view path,
    absl::FunctionRef<absl::Status(const JsonObject& object, const std::string& where)> visit) {
  ASSIGN_OR_RETURN(const MappedFile file, Open(path));
  absl::string_view text = file.bytes();
  for (int64_t number = 1; !text.empty(); ++number) {
    const absl::string_view line = TakeLine(text);
    if (IsBlank(line)) continue;
    const std::string where = absl::StrCat(path, ": line ", number);
    if (line.size() > kMaxLineBytes) {
      return Wrong(
          where, absl::StrCat("has ", line.size(), " bytes, at most ", kMaxLineBytes, " are read"));
    }
    ASSIGN_OR_RETURN(const Json json, ParseJson(line, where));
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, where));
    RETURN_IF_ERROR(visit(object, where));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ReadDocuments(absl::string_view path) {
  std::vector<std::string> documents;
  if (absl::EndsWith(path, ".jsonl")) {
    RETURN_IF_ERROR(
        ForEachJsonLine(path, [&](const JsonObject& object, const std::string&) -> absl::Status {
          ASSIGN_OR_RETURN(std::string document, object.String("text"));
          if (!IsBlank(document)) documents.push_back(std::move(document));
          return absl::OkStatus();
        }));
  } else {
    ASSIGN_OR_RETURN(const MappedFile file, Open(path));
    documents = Pieces(file.bytes());
  }
  if (documents.empty()) return Wrong(path, "holds no text");
  return documents;
}

absl::StatusOr<std::string> ReadText(absl::string_view path) {
  if (absl::EndsWith(path, ".jsonl")) {
    ASSIGN_OR_RETURN(const std::vector<std::string> documents, ReadDocuments(path));
    return absl::StrJoin(documents, "\n\n");
  }
  ASSIGN_OR_RETURN(const MappedFile file, Open(path));
  if (IsBlank(file.bytes())) return Wrong(path, "holds no text");
  return std::string(file.bytes());
}

}  // namespace quern

#ifndef QUERN_CORE_CONVERT_GGUF_H_
#define QUERN_CORE_CONVERT_GGUF_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include "core/artifact/packed_model.h"

namespace quern {

// Writes `model` as a GGUF file, durably, and reads it again: ExportForm::kGguf. One tensor is in
// memory at a time. FAILED_PRECONDITION when the file would not say the same; RESOURCE_EXHAUSTED
// when the disk is full. An error leaves no file.
absl::Status ExportGguf(const PackedModel& model, absl::string_view path);

}  // namespace quern

#endif  // QUERN_CORE_CONVERT_GGUF_H_

#ifndef QUERN_CORE_CHECKPOINT_GGUF_CHECKPOINT_H_
#define QUERN_CORE_CHECKPOINT_GGUF_CHECKPOINT_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>

#include "core/checkpoint/checkpoint.h"

namespace quern {

// See OpenCheckpoint; `path` is a GGUF file.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(
    absl::string_view path, const OpenCheckpointOptions& options);

// See ReadCheckpointConfig.
absl::StatusOr<ModelConfig> ReadGgufConfig(absl::string_view path);

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_CHECKPOINT_H_

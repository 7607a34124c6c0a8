#ifndef QUERN_CORE_CHECKPOINT_HF_CHECKPOINT_H_
#define QUERN_CORE_CHECKPOINT_HF_CHECKPOINT_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>

#include "core/checkpoint/checkpoint.h"

namespace quern {

// See OpenCheckpoint; `directory` holds a Hugging Face checkpoint.
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHuggingFaceCheckpoint(
    absl::string_view directory, const OpenCheckpointOptions& options);

// See ReadCheckpointConfig.
absl::StatusOr<ModelConfig> ReadHuggingFaceConfig(absl::string_view directory);

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_HF_CHECKPOINT_H_

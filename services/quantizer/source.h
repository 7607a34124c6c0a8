#ifndef QUERN_SERVICES_QUANTIZER_SOURCE_H_
#define QUERN_SERVICES_QUANTIZER_SOURCE_H_

// The full-precision model that a task names.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>
#include <string>

#include "core/checkpoint/checkpoint.h"
#include "core/tokenizer/tokenizer.h"
#include "services/quantizer/run_context.h"

namespace quern {

// `status` with the reason that errors of a checkpoint have: CHECKPOINT_NOT_FOUND,
// CHECKPOINT_DAMAGED or CHECKPOINT_UNSUPPORTED.
absl::Status CheckpointError(absl::Status status);

struct Source {
  std::shared_ptr<const Checkpoint> checkpoint;
  std::string digest;
};

// `field` names the path in messages; CHECKPOINT_CHANGED when `wanted_digest` is set and another.
absl::StatusOr<Source> OpenSourceCheckpoint(const RunContext& context, absl::string_view field,
                                            const std::string& path,
                                            const std::string& wanted_digest);

// CHECKPOINT_UNSUPPORTED when it has none.
absl::StatusOr<std::shared_ptr<const Tokenizer>> SourceTokenizer(const Checkpoint& checkpoint);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_SOURCE_H_

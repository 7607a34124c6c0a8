#ifndef QUERN_CORE_ARTIFACT_SCALE_DELTA_H_
#define QUERN_CORE_ARTIFACT_SCALE_DELTA_H_

// A scale delta: an artifact that holds only what fine-tuning changed of another one, its base.
// Codes stay, so it has a few percent of the base's size, and what it leaves as it is can be held
// in memory once. Spec: README.md here.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>

#include "core/artifact/artifact.h"

namespace quern {

// Writes what `tuned` has other than `base` (scales, zero points, norm weights and biases) into the
// new directory `directory`, as WriteArtifact does. Returns the delta's id. INVALID_ARGUMENT naming
// the tensor or field when anything else differs or nothing does, and when `base` is a delta
// itself.
absl::StatusOr<std::string> WriteScaleDelta(const LoadedArtifact& base, const PackedModel& tuned,
                                            const Lineage& lineage, absl::string_view directory);

// The model that the delta in `directory` makes of `base`, whose memory it shares where it replaces
// nothing. Verifies as LoadArtifact does; each tensor must be one of the base's that a delta may
// replace, of the same type and shape. DATA_LOSS naming the file and what is wrong;
// FAILED_PRECONDITION when the directory holds no delta, or `base` is another artifact than the
// delta's or a delta itself.
absl::StatusOr<LoadedArtifact> LoadScaleDelta(absl::string_view directory,
                                              const LoadedArtifact& base,
                                              absl::string_view expected_id = "");

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_SCALE_DELTA_H_

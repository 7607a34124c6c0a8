#ifndef QUERN_SERVICES_QUANTIZER_ARTIFACTS_H_
#define QUERN_SERVICES_QUANTIZER_ARTIFACTS_H_

// Artifacts that tasks start from, as the worker has laid them below --artifact-root.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>
#include <optional>
#include <string>

#include "core/artifact/artifact.h"
#include "core/tokenizer/tokenizer.h"
#include "services/quantizer/run_context.h"

namespace quern {

struct ArtifactAndBase {
  LoadedArtifact artifact;             // a whole model, or what a scale delta makes of its base
  std::optional<LoadedArtifact> base;  // of a scale delta
  std::shared_ptr<const Tokenizer> tokenizer;
};

// Artifact `id`, verified. `field` names it in messages. BASE_INVALID: it or its base is not there,
// damaged or without a tokenizer.
absl::StatusOr<ArtifactAndBase> OpenArtifact(const RunContext& context, absl::string_view field,
                                             const std::string& id);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_ARTIFACTS_H_

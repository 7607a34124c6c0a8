#include "services/quantizer/artifacts.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "core/artifact/scale_delta.h"
#include "core/base/error_reason.h"
#include "core/base/status_macros.h"
#include "services/quantizer/errors.h"

namespace quern {
namespace {

absl::StatusOr<ArtifactAndBase> Open(const std::string& root, const std::string& id) {
  const std::string directory = absl::StrCat(root, "/", id);
  ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(directory));
  ArtifactAndBase opened;
  if (manifest.base.empty()) {
    ASSIGN_OR_RETURN(opened.artifact, LoadArtifact(directory, id));
  } else {
    ASSIGN_OR_RETURN(opened.base,
                     LoadArtifact(absl::StrCat(root, "/", manifest.base), manifest.base));
    ASSIGN_OR_RETURN(opened.artifact, LoadScaleDelta(directory, *opened.base, id));
  }
  if (opened.artifact.model.tokenizer_json.empty()) {
    return absl::FailedPreconditionError("it has no tokenizer, so text cannot become tokens");
  }
  ASSIGN_OR_RETURN(opened.tokenizer, Tokenizer::FromJson(opened.artifact.model.tokenizer_json));
  return opened;
}

}  // namespace

absl::StatusOr<ArtifactAndBase> OpenArtifact(const RunContext& context, absl::string_view field,
                                             const std::string& id) {
  absl::StatusOr<ArtifactAndBase> opened = Open(context.config().artifact_root, id);
  if (opened.ok()) return opened;
  return WithReason(Prefixed(opened.status(), absl::StrCat(field, " artifacts/", id)),
                    reason::kBaseInvalid);
}

}  // namespace quern

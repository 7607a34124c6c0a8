#include "services/quantizer/source.h"

#include <absl/strings/str_cat.h>

#include <utility>

#include "core/base/error_reason.h"
#include "core/base/status_macros.h"
#include "services/quantizer/errors.h"

namespace quern {

absl::Status CheckpointError(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
      return WithReason(std::move(status), reason::kCheckpointNotFound);
    case absl::StatusCode::kDataLoss:
      return WithReason(std::move(status), reason::kCheckpointDamaged);
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return WithReason(std::move(status), reason::kCheckpointUnsupported);
    default:
      return status;
  }
}

absl::StatusOr<Source> OpenSourceCheckpoint(const RunContext& context, absl::string_view field,
                                            const std::string& path,
                                            const std::string& wanted_digest) {
  absl::StatusOr<std::string> resolved = context.Resolve(context.config().model_root, path);
  if (!resolved.ok()) return CheckpointError(Prefixed(resolved.status(), field));
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = OpenCheckpoint(*resolved);
  if (!checkpoint.ok()) return CheckpointError(checkpoint.status());
  Source source{.checkpoint = *std::move(checkpoint)};
  absl::StatusOr<std::string> digest = source.checkpoint->DigestHex();
  if (!digest.ok()) return CheckpointError(digest.status());
  source.digest = *std::move(digest);
  if (!wanted_digest.empty() && wanted_digest != source.digest) {
    return WithReason(absl::FailedPreconditionError(absl::StrCat(
                          "checkpoint ", path, ": digest is ", source.digest, ", the task wants ",
                          wanted_digest, "; the files were changed")),
                      reason::kCheckpointChanged);
  }
  return source;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> SourceTokenizer(const Checkpoint& checkpoint) {
  if (checkpoint.tokenizer_json().empty()) {
    return WithReason(absl::FailedPreconditionError(
                          "the checkpoint has no tokenizer.json, so text cannot become tokens"),
                      reason::kCheckpointUnsupported);
  }
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer =
      Tokenizer::FromJson(checkpoint.tokenizer_json());
  if (!tokenizer.ok()) return CheckpointError(tokenizer.status());
  return tokenizer;
}

}  // namespace quern

#include "services/common/policy.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>

#include <utility>
#include <vector>

namespace quern {
namespace {

constexpr std::pair<Role, absl::string_view> kRoleNames[] = {{Role::kReader, "reader"},
                                                             {Role::kSubmitter, "submitter"},
                                                             {Role::kWorker, "worker"},
                                                             {Role::kAdmin, "admin"}};

constexpr Roles kOpen;
constexpr Roles kRead = {Role::kReader, Role::kSubmitter, Role::kAdmin};
constexpr Roles kSubmit = {Role::kSubmitter, Role::kAdmin};
// Not an admin's: nobody but a worker has a lease to speak for.
constexpr Roles kWork = {Role::kWorker};
constexpr Roles kAdminister = {Role::kAdmin};
constexpr Roles kAnyone = {Role::kReader, Role::kSubmitter, Role::kWorker, Role::kAdmin};

constexpr PolicyRow kRpcPolicy[] = {
    {"/quern.inference.v1.InferenceService/GenerateText", kRead},
    {"/quern.inference.v1.InferenceService/StreamGenerateText", kRead},
    {"/quern.inference.v1.InferenceService/CountTokens", kRead},
    {"/quern.inference.v1.InferenceService/Tokenize", kRead},
    {"/quern.inference.v1.InferenceService/Detokenize", kRead},
    {"/quern.inference.v1.ModelService/CreateModel", kAdminister},
    {"/quern.inference.v1.ModelService/GetModel", kRead},
    {"/quern.inference.v1.ModelService/ListModels", kRead},
    {"/quern.inference.v1.ModelService/DeleteModel", kAdminister},
    {"/quern.inference.v1.ModelService/CreateAlias", kAdminister},
    {"/quern.inference.v1.ModelService/GetAlias", kRead},
    {"/quern.inference.v1.ModelService/ListAliases", kRead},
    {"/quern.inference.v1.ModelService/UpdateAlias", kAdminister},
    {"/quern.inference.v1.ModelService/DeleteAlias", kAdminister},
    {"/quern.quantization.v1.QuantizationService/CreateQuantizationJob", kSubmit},
    {"/quern.quantization.v1.QuantizationService/GetQuantizationJob", kSubmit},
    {"/quern.quantization.v1.QuantizationService/ListQuantizationJobs", kSubmit},
    {"/quern.quantization.v1.QuantizationService/CancelQuantizationJob", kSubmit},
    {"/quern.quantization.v1.QuantizationService/DeleteQuantizationJob", kAdminister},
    {"/quern.quantization.v1.QuantizationService/WatchQuantizationJob", kSubmit},
    {"/quern.worker.v1.WorkerService/LeaseJob", kWork},
    {"/quern.worker.v1.WorkerService/RenewLease", kWork},
    {"/quern.worker.v1.WorkerService/ReleaseLease", kWork},
    {"/quern.worker.v1.WorkerService/StageArtifact", kWork},
    {"/quern.worker.v1.WorkerService/CompleteJob", kWork},
    {"/quern.artifact.v1.ArtifactService/GetArtifact", kRead},
    {"/quern.artifact.v1.ArtifactService/ListArtifacts", kRead},
    // A worker reads what its job starts from.
    {"/quern.artifact.v1.ArtifactService/ReadArtifactFile", kAnyone},
    {"/quern.artifact.v1.ArtifactService/DeleteArtifact", kAdminister},
    // Balancers and supervisors ask without a credential; the answer is one word.
    {"/grpc.health.v1.Health/Check", kOpen},
    {"/grpc.health.v1.Health/Watch", kOpen},
    {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", kAnyone},
};

constexpr PolicyRow kHttpPolicy[] = {
    {"/v1/completions", kRead}, {"/v1/chat/completions", kRead},
    {"/v1/models", kRead},      {"/v1/models/", kRead},
    {"/tokenize", kRead},       {"/detokenize", kRead},
    {"/healthz", kOpen},        {"/readyz", kOpen},
    {"/metrics", kRead},
};

}  // namespace

std::string Roles::ToString() const {
  std::vector<absl::string_view> names;
  for (const auto& [role, name] : kRoleNames) {
    if (Intersects({role})) names.push_back(name);
  }
  return names.empty() ? "none" : absl::StrJoin(names, ",");
}

absl::StatusOr<Role> ParseRole(absl::string_view name) {
  for (const auto& [role, role_name] : kRoleNames) {
    if (name == role_name) return role;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("wanted one of the roles ", kAnyone.ToString(), ", found another word"));
}

bool IsPrincipalName(absl::string_view name) {
  if (name.empty() || name.size() > 63) return false;
  for (char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && !absl::StrContains("._@-", c)) {
      return false;
    }
  }
  return true;
}

bool PathIsOneOf(absl::Span<const absl::string_view> patterns, absl::string_view path) {
  for (absl::string_view pattern : patterns) {
    if (path == pattern) return true;
    if (absl::EndsWith(pattern, "/") && absl::StartsWith(path, pattern)) return true;
  }
  return false;
}

absl::Span<const PolicyRow> RpcPolicy() { return kRpcPolicy; }
absl::Span<const PolicyRow> HttpPolicy() { return kHttpPolicy; }

const PolicyRow* FindRpcPolicy(absl::string_view full_method) {
  for (const PolicyRow& row : kRpcPolicy) {
    if (row.target == full_method) return &row;
  }
  return nullptr;
}

const PolicyRow* FindHttpPolicy(absl::string_view path) {
  for (const PolicyRow& row : kHttpPolicy) {
    if (PathIsOneOf({row.target}, path)) return &row;
  }
  return nullptr;
}

}  // namespace quern

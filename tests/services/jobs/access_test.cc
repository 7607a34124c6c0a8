// Who may call quern-jobs.

#include "services/common/auth_tokens.h"
#include "tests/services/common/policy_walk.h"
#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

TEST_F(JobsServerTest, EachRpcIsGuarded) {
  std::map<Role, std::string> tokens;
  std::string lines;
  for (const Role role : {Role::kReader, Role::kSubmitter, Role::kWorker, Role::kAdmin}) {
    tokens[role] = NewAuthToken().value();
    lines += AuthTokenLine({"somebody", {role}}, tokens[role], absl::InfiniteFuture()) + "\n";
  }
  ASSERT_OK(WriteFileDurably(directory_ / "tokens", lines));
  config_.security.auth_tokens = directory_ / "tokens";
  Start();
  for (const auto& [role, token] : tokens) {
    EXPECT_EQ(ExpectEachRpcIsGuarded(channel_, token, role), 15);
  }
  // Those who may, do.
  EXPECT_OK(CallByName(channel_, "/quern.quantization.v1.QuantizationService/CreateQuantizationJob",
                       CreateRequest().SerializeAsString(), tokens[Role::kSubmitter])
                .status());
  EXPECT_OK(CallByName(channel_, "/quern.artifact.v1.ArtifactService/ListArtifacts", "",
                       tokens[Role::kReader])
                .status());
}

}  // namespace
}  // namespace quern

// Who may call quern-inference, over both of its protocols.

#include <sys/stat.h>

#include "core/base/status_macros.h"
#include "services/common/auth_tokens.h"
#include "services/inference/openai_server.h"
#include "tests/services/common/policy_walk.h"
#include "tests/services/inference/inference_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::StartsWith;

class AccessTest : public InferenceServerTest {
 protected:
  AccessTest() {
    std::string lines;
    const std::pair<const char*, Role> people[] = {{"ann", Role::kAdmin},
                                                   {"rob", Role::kReader},
                                                   {"sue", Role::kSubmitter},
                                                   {"wes", Role::kWorker}};
    for (const auto& [name, role] : people) {
      tokens_[name] = NewAuthToken().value();
      lines += AuthTokenLine({name, {role}}, tokens_[name], absl::InfiniteFuture()) + "\n";
    }
    EXPECT_OK(WriteFileDurably(directory_.Path("tokens"), lines));
    config_.security.auth_tokens = directory_.Path("tokens");
    Start();
  }

  // Loads the checkpoint "tiny" as an admin does.
  void LoadAsAdmin() {
    inference::v1::CreateModelRequest request = CheckpointRequest("tiny", "tiny");
    ASSERT_OK(CallByName(channel_, "/quern.inference.v1.ModelService/CreateModel",
                         request.SerializeAsString(), tokens_["ann"])
                  .status());
    inference::v1::GetModelRequest get;
    get.set_name("models/tiny");
    EXPECT_TRUE(Eventually([&] {
      const absl::StatusOr<std::string> answer =
          CallByName(channel_, "/quern.inference.v1.ModelService/GetModel", get.SerializeAsString(),
                     tokens_["rob"]);
      Model model;
      return answer.ok() && model.ParseFromString(*answer) && model.state() == Model::ACTIVE;
    }));
  }
  absl::StatusOr<GenerateTextResponse> GenerateAs(const std::string& name,
                                                  const GenerateTextRequest& request) {
    ASSIGN_OR_RETURN(const std::string answer,
                     CallByName(channel_, "/quern.inference.v1.InferenceService/GenerateText",
                                request.SerializeAsString(), tokens_[name]));
    GenerateTextResponse response;
    EXPECT_TRUE(response.ParseFromString(answer));
    return response;
  }
  std::string Http(const std::string& method, const std::string& path, const std::string& name,
                   const std::string& body = "") {
    const std::string authorization =
        name.empty() ? "" : absl::StrCat("Authorization: Bearer ", tokens_[name], "\r\n");
    return Exchange(server_->http_address(),
                    absl::StrCat(method, " ", path, " HTTP/1.1\r\nHost: x\r\n", authorization,
                                 "Content-Type: application/json\r\nContent-Length: ", body.size(),
                                 "\r\nConnection: close\r\n\r\n", body));
  }

  std::map<std::string, std::string> tokens_;
};

TEST_F(AccessTest, EachRpcIsGuarded) {
  EXPECT_EQ(ExpectEachRpcIsGuarded(channel_, tokens_["wes"], Role::kWorker), 14);
  EXPECT_EQ(ExpectEachRpcIsGuarded(channel_, tokens_["rob"], Role::kReader), 14);
}

TEST_F(AccessTest, EachHttpPathIsGuarded) {
  for (absl::string_view pattern : OpenAiApi::Paths()) {
    std::string path(pattern);
    if (absl::EndsWith(path, "/")) path += "tiny";
    const PolicyRow* row = FindHttpPolicy(path);
    ASSERT_NE(row, nullptr) << path << " has no row in services/common/policy.cc";
    EXPECT_EQ(row->target, pattern);
    EXPECT_FALSE(row->roles.empty()) << path;
    for (const char* method : {"GET", "POST", "DELETE"}) {
      EXPECT_THAT(Http(method, path, ""),
                  testing::AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("\"error\":{\"message\":"),
                                 HasSubstr("WWW-Authenticate: Bearer")))
          << path;
      EXPECT_THAT(Http(method, path, "wes"), StartsWith("HTTP/1.1 403")) << path;
    }
  }
  for (const PolicyRow& row : HttpPolicy()) {
    const auto has = [&](absl::Span<const absl::string_view> paths) {
      return std::find(paths.begin(), paths.end(), row.target) != paths.end();
    };
    EXPECT_TRUE(has(OpenAiApi::Paths()) || has(MetricsEndpoint::Paths())) << row.target;
  }
  for (absl::string_view path : MetricsEndpoint::Paths()) {
    EXPECT_NE(FindHttpPolicy(path), nullptr) << path;
  }
}

TEST_F(AccessTest, RolesDecide) {
  LoadAsAdmin();
  EXPECT_THAT(
      CallByName(channel_, "/quern.inference.v1.ModelService/DeleteModel", "", tokens_["sue"]),
      StatusIs(StatusCode::kPermissionDenied, HasSubstr("takes one of admin")));
  for (const char* name : {"ann", "rob", "sue"}) {
    EXPECT_OK(GenerateAs(name, Request())) << name;
    EXPECT_THAT(Http("GET", "/v1/models", name), HasSubstr("\"id\":\"tiny\""));
    EXPECT_THAT(
        Http("POST", "/v1/completions", name, R"({"model":"tiny","prompt":"Once","max_tokens":2})"),
        StartsWith("HTTP/1.1 200"));
  }
}

// By timing, nobody may find out what another one asked.
TEST_F(AccessTest, APrincipalsPromptsAreCachedForThemAlone) {
  LoadAsAdmin();
  const GenerateTextRequest request = Request(std::string(200, 'a'), 2);
  ASSERT_OK(GenerateAs("rob", request));
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse again, GenerateAs("rob", request));
  EXPECT_GT(again.usage().cached_prompt_tokens(), 0);
  ASSERT_OK_AND_ASSIGN(const GenerateTextResponse other, GenerateAs("sue", request));
  EXPECT_EQ(other.usage().cached_prompt_tokens(), 0);
  // The same principal over the other protocol is the same principal.
  const std::string body =
      absl::StrCat(R"({"model":"tiny","max_tokens":2,"prompt":")", std::string(200, 'a'), "\"}");
  EXPECT_THAT(Http("POST", "/v1/completions", "ann", body), HasSubstr("\"cached_tokens\":0"));
  EXPECT_THAT(Http("POST", "/v1/completions", "rob", body),
              testing::Not(HasSubstr("\"cached_tokens\":0")));
}

}  // namespace
}  // namespace quern

#include "services/common/auth_tokens.h"

#include <absl/strings/str_cat.h>
#include <sys/stat.h>

#include "core/base/file.h"
#include "core/base/sha256.h"
#include "services/common/policy.h"
#include "services/common/security_config.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

const absl::Time kNoon = absl::FromUnixSeconds(1'800'000'000);

TEST(AuthTokensTest, FindsWhoseATokenIs) {
  ASSERT_OK_AND_ASSIGN(const std::string old_token, NewAuthToken());
  ASSERT_OK_AND_ASSIGN(const std::string new_token, NewAuthToken());
  EXPECT_NE(old_token, new_token);
  EXPECT_EQ(new_token.size(), 6 + 43);
  const Principal alice{"alice@example.org", {Role::kReader, Role::kAdmin}};
  const std::string file =
      absl::StrCat("# who may\n\n", AuthTokenLine(alice, old_token, kNoon), "\r\n  ",
                   AuthTokenLine(alice, new_token, absl::InfiniteFuture()), "\n");
  EXPECT_THAT(file, AllOf(HasSubstr("alice@example.org reader,admin sha256:"),
                          HasSubstr(" expires=2027-01-15T08:00:00Z"), Not(HasSubstr("quern_"))));
  ASSERT_OK_AND_ASSIGN(const AuthTokens tokens, AuthTokens::Parse(file, "tokens"));
  EXPECT_EQ(tokens.size(), 2);
  for (const std::string& token : {old_token, new_token}) {
    const std::optional<Principal> found = tokens.Find(token, kNoon - absl::Seconds(1));
    ASSERT_TRUE(found.has_value());
    EXPECT_EQ(found->name, alice.name);
    EXPECT_TRUE(found->roles == alice.roles);
  }
  EXPECT_FALSE(tokens.Find(old_token, kNoon).has_value());
  EXPECT_TRUE(tokens.Find(new_token, kNoon).has_value());
  for (const std::string& other :
       {std::string(), old_token.substr(1), old_token + " ", Sha256Hex(old_token),
        std::string(100'000, 'x'), *NewAuthToken()}) {
    EXPECT_FALSE(tokens.Find(other, kNoon - absl::Seconds(1)).has_value());
  }
}

TEST(AuthTokensTest, RefusesLinesWithoutQuotingWhatMightBeAToken) {
  const std::string hash = absl::StrCat("sha256:", std::string(64, 'a'));
  const std::pair<std::string, const char*> bad[] = {
      {"alice", "found 1 fields"},
      {"alice admin", "found 2 fields"},
      {"alice admin " + hash + " expires=2030-01-31T00:00:00Z more", "found 5 fields"},
      {"al/ice admin " + hash, "principal"},
      {std::string(64, 'a') + " admin " + hash, "principal"},
      {"alice root " + hash, "reader,submitter,worker,admin"},
      {"alice admin, " + hash, "reader,submitter,worker,admin"},
      {"alice admin quern_secret", "not the token"},
      {"alice admin sha256:" + std::string(63, 'a'), "not the token"},
      {"alice admin sha256:" + std::string(64, 'A'), "not the token"},
      {"alice admin " + hash + " quern_secret", "expires="},
      {"alice admin " + hash + " expires=tomorrow", "expires="},
      {"quern_secret quern_secret " + hash, "reader,submitter,worker,admin"},
      {"bob reader " + hash + "\nalice admin " + hash, "another line"},
  };
  for (const auto& [line, message] : bad) {
    EXPECT_THAT(
        AuthTokens::Parse("# one\n" + line, "the file"),
        StatusIs(StatusCode::kInvalidArgument,
                 AllOf(HasSubstr("the file:"), HasSubstr(message), Not(HasSubstr("quern_secret")))))
        << line;
  }
  std::string many;
  for (int i = 0; i < 1024; ++i) {
    many += AuthTokenLine({"a", {Role::kReader}}, absl::StrCat(i), absl::InfiniteFuture()) + "\n";
  }
  EXPECT_OK(AuthTokens::Parse(many, "f"));
  EXPECT_THAT(AuthTokens::Parse(many + "a reader " + hash, "f"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("f:1025: more than 1024")));
}

TEST(AuthTokensTest, ReadsATokenThatIsKeptToItsOwner) {
  const ScratchDirectory directory;
  const std::string path = directory / "token";
  ASSERT_OK(WriteFileDurably(path, "quern_abc\n"));
  chmod(path.c_str(), 0640);
  EXPECT_EQ(ReadTokenFile(path).value(), "quern_abc");
  for (const mode_t mode : {0644, 0604, 0660, 0601}) {
    chmod(path.c_str(), mode);
    EXPECT_THAT(ReadTokenFile(path),
                StatusIs(StatusCode::kFailedPrecondition, HasSubstr("chmod 600")));
  }
  for (const std::string& text :
       {std::string(), std::string("\n"), std::string("two words"), std::string("two\nlines"),
        std::string("nul\0", 4), std::string(257, 'a'), std::string("\xc3\xa9")}) {
    ASSERT_OK(WriteFileDurably(path, text));
    chmod(path.c_str(), 0600);
    EXPECT_FALSE(ReadTokenFile(path).ok()) << text;
  }
  EXPECT_THAT(ReadTokenFile(directory / "none"), StatusIs(StatusCode::kNotFound, testing::_));
}

TEST(PolicyTest, NamesRolesAndFindsRows) {
  EXPECT_EQ(Roles().ToString(), "none");
  EXPECT_EQ((Roles{Role::kAdmin, Role::kReader}).ToString(), "reader,admin");
  EXPECT_THAT(ParseRole("Admin"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("submitter")));
  EXPECT_EQ(FindRpcPolicy("/quern.inference.v1.InferenceService/Other"), nullptr);
  EXPECT_EQ(FindRpcPolicy("quern.inference.v1.InferenceService/GenerateText"), nullptr);
  EXPECT_EQ(FindHttpPolicy("/v1/models/tiny")->target, "/v1/models/");
  EXPECT_EQ(FindHttpPolicy("/v1/completions/"), nullptr);
  EXPECT_EQ(FindHttpPolicy("/V1/models"), nullptr);
}

TEST(SecurityConfigTest, OtherMachinesTakeTlsAndACredentialOrTheFlag) {
  const SecurityConfig tls{.tls_cert = "c", .tls_key = "k"};
  SecurityConfig tokens;
  tokens.auth_tokens = "t";
  SecurityConfig both = tls;
  both.auth_tokens = "t";
  SecurityConfig mutual = tls;
  mutual.tls_client_ca = "ca";
  for (const SecurityConfig& config : {SecurityConfig(), tls, tokens, both, mutual}) {
    EXPECT_OK(config.Validate());
    EXPECT_OK(CheckListenAddress("--listen", "127.0.0.1:1", config));
  }
  EXPECT_OK(CheckListenAddress("--listen", "0.0.0.0:1", both));
  EXPECT_OK(CheckListenAddress("--listen", "0.0.0.0:1", mutual));
  const auto expect = [](SecurityConfig config, const char* message, bool flag_helps) {
    EXPECT_THAT(CheckListenAddress("--listen", "0.0.0.0:1", config),
                StatusIs(StatusCode::kFailedPrecondition,
                         AllOf(HasSubstr("--listen"), HasSubstr("0.0.0.0:1"), HasSubstr(message))));
    config.allow_insecure_network = true;
    EXPECT_EQ(CheckListenAddress("--listen", "0.0.0.0:1", config).ok(), flag_helps);
  };
  expect({}, "not encrypted", true);
  expect(tls, "anybody may call it", true);
  expect(tokens, "tokens would cross the network", false);

  EXPECT_THAT((SecurityConfig{.tls_cert = "c"}.Validate()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--tls-key")));
  EXPECT_THAT((SecurityConfig{.tls_key = "k"}.Validate()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--tls-cert")));
  EXPECT_THAT((SecurityConfig{.tls_client_ca = "ca"}.Validate()),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("--tls-client-ca")));
}

}  // namespace
}  // namespace quern

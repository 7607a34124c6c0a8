#include "services/common/address.h"

#include "core/base/file.h"
#include "services/common/ready_file.h"
#include "services/common/status.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

TEST(AddressTest, ParsesHostAndPort) {
  EXPECT_EQ(ParseHostPort("127.0.0.1:7400").value().port, 7400);
  EXPECT_EQ(ParseHostPort("[::1]:0").value().host, "::1");
  EXPECT_EQ(ParseHostPort("[::1]:5").value().ToString(), "[::1]:5");
  EXPECT_EQ(ParseHostPort("my-host.example:65535").value().ToString(), "my-host.example:65535");
}

TEST(AddressTest, RefusesWhatIsNoAddress) {
  for (const char* text :
       {"", ":", "127.0.0.1", "127.0.0.1:", ":7400", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:+1", "127.0.0.1: 1", "127.0.0.1:1x", "::1:7400", "[::1:7400", "[]:1", "a b:1",
        "unix:/tmp/socket", "host/path:1", "127.0.0.1:99999999999"}) {
    EXPECT_THAT(ParseHostPort(text), StatusIs(StatusCode::kInvalidArgument, HasSubstr("HOST:PORT")))
        << text;
  }
}

TEST(AddressTest, KnowsWhatOnlyThisMachineReaches) {
  for (const char* host : {"127.0.0.1", "127.255.0.3", "::1", "localhost"}) {
    EXPECT_TRUE(IsLoopback(host)) << host;
  }
  for (const char* host : {"0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "example.com", "127.0.0.1.x",
                           "::ffff:127.0.0.1"}) {
    EXPECT_FALSE(IsLoopback(host)) << host;
  }
}

TEST(StatusTest, GoesBothWays) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<StatusCode>(code), code == 0 ? "" : "why");
    EXPECT_EQ(ToGrpcStatus(status).error_code(), code);
    EXPECT_EQ(FromGrpcStatus(ToGrpcStatus(status)), status);
  }
}

TEST(ReadyFileTest, SaysWhereTheServiceIs) {
  const ScratchDirectory directory;
  const std::string path = directory / "ready";
  ASSERT_OK(RemoveReadyFile(path));
  ASSERT_OK(WriteReadyFile(path, {.grpc = "127.0.0.1:1", .metrics = "127.0.0.1:2"}));
  EXPECT_EQ(ReadFile(path, 1000).value(),
            "{\"grpc_address\":\"127.0.0.1:1\",\"http_address\":\"\",\"metrics_address\":\"127.0.0."
            "1:2\",\"pid\":" +
                std::to_string(getpid()) + "}\n");
  ASSERT_OK(RemoveReadyFile(path));
  EXPECT_THAT(ReadFile(path, 1000), StatusIs(StatusCode::kNotFound, testing::_));
  EXPECT_OK(WriteReadyFile("", {.grpc = "a", .metrics = "b"}));
}

}  // namespace
}  // namespace quern

#include "core/base/subprocess.h"

#include <absl/time/clock.h>
#include <signal.h>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;
using testing::Optional;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

TEST(SubprocessTest, GivesLinesAndTheExitCode) {
  ASSERT_OK_AND_ASSIGN(
      auto child, Subprocess::Start({.argv = {"/bin/sh", "-c", "echo $GREETING; printf b; exit 3"},
                                     .environment = {{"GREETING", "hello you"}},
                                     .capture_output = true}));
  EXPECT_THAT(child->ReadLine(Soon()).value(), Optional(std::string("hello you")));
  EXPECT_THAT(child->ReadLine(Soon()).value(), Optional(std::string("b")));
  EXPECT_EQ(child->ReadLine(Soon()).value(), std::nullopt);
  ASSERT_OK_AND_ASSIGN(ExitStatus status, child->Wait(Soon()));
  EXPECT_EQ(status.exit_code, 3);
  EXPECT_EQ(child->Wait(Soon())->ToString(), "exit code 3");
  EXPECT_THAT(child->Signal(SIGTERM), StatusIs(absl::StatusCode::kNotFound, HasSubstr("ended")));
}

TEST(SubprocessTest, SeparatesErrorOutput) {
  ASSERT_OK_AND_ASSIGN(auto child,
                       Subprocess::Start({.argv = {"/bin/sh", "-c", "echo out; echo err >&2"},
                                          .environment = {},
                                          .capture_output = true,
                                          .capture_error = true}));
  EXPECT_THAT(child->ReadErrorLine(Soon()).value(), Optional(std::string("err")));
  EXPECT_THAT(child->ReadLine(Soon()).value(), Optional(std::string("out")));
  EXPECT_TRUE(child->Wait(Soon())->success());
}

TEST(SubprocessTest, DeadlinesAndSignals) {
  ASSERT_OK_AND_ASSIGN(auto child, Subprocess::Start({.argv = {"/bin/cat", "/dev/zero"},
                                                      .environment = {},
                                                      .capture_output = true}));
  EXPECT_THAT(child->Wait(absl::Now()),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("still runs")));
  ASSERT_OK(child->Signal(SIGTERM));
  ASSERT_OK_AND_ASSIGN(ExitStatus status, child->Wait(Soon()));
  EXPECT_EQ(status.signal, SIGTERM);
  EXPECT_FALSE(status.success());
}

TEST(SubprocessTest, MissingProgramIsNamed) {
  EXPECT_THAT(Subprocess::Start({.argv = {"/nowhere/program"}}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere/program")));
  EXPECT_THAT(Subprocess::Start({.argv = {"/"}}),
              StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("/")));
  EXPECT_FALSE(Subprocess::Start({}).ok());
}

TEST(SubprocessTest, DestroyingItKillsTheChild) {
  pid_t pid = 0;
  {
    ASSERT_OK_AND_ASSIGN(auto child, Subprocess::Start({.argv = {"/bin/cat", "/dev/zero"},
                                                        .environment = {},
                                                        .capture_output = true}));
    pid = child->pid();
  }
  EXPECT_NE(kill(pid, 0), 0);
}

}  // namespace
}  // namespace quern

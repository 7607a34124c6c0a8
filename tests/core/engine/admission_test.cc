#include "core/engine/admission.h"

#include "core/base/retry_delay.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

using testing::Optional;

void Enter(Admission& admission, const std::string& principal, int64_t tokens, int times = 1) {
  for (int i = 0; i < times; ++i) {
    ASSERT_OK(admission.Check(principal, tokens, 0));
    admission.Enter(principal, tokens);
  }
}

// How many requests get in until one is refused.
int Fill(Admission& admission, const std::string& principal, int64_t tokens) {
  int count = 0;
  while (admission.Check(principal, tokens, 0).ok()) {
    admission.Enter(principal, tokens);
    ++count;
  }
  return count;
}

TEST(AdmissionTest, RequestsAreBounded) {
  Admission admission({.max_sequences = 2, .max_queued_requests = 3, .max_queued_tokens = 1000});
  Enter(admission, "", 10, 5);
  const absl::Status refused = admission.Check("", 1, 0);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                testing::HasSubstr("5 unfinished requests")));
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kRequests));
  admission.Leave("", 10);
  EXPECT_OK(admission.Check("", 1, 0));
}

TEST(AdmissionTest, TokensAreBoundedToTheLast) {
  Admission admission({.max_sequences = 4, .max_queued_requests = 100, .max_queued_tokens = 100});
  Enter(admission, "", 60);
  EXPECT_OK(admission.Check("", 40, 0));
  const absl::Status refused = admission.Check("", 41, 0);
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("limit of 100")));
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kTokens));
  admission.Leave("", 60);
  EXPECT_OK(admission.Check("", 1000, 0)) << "one alone is always taken";
}

TEST(AdmissionTest, TheDelayIsHowLongTheRoomTakes) {
  Admission admission({.max_sequences = 1, .max_queued_requests = 3, .max_queued_tokens = 1000});
  Enter(admission, "", 200, 4);
  const auto delay = [&](int64_t tokens, double rate) {
    return RetryDelayOf(admission.Check("", tokens, rate));
  };
  // By requests: the mean one, 200 tokens.
  EXPECT_THAT(delay(1, 20), Optional(absl::Seconds(10)));
  EXPECT_THAT(delay(1, 0), Optional(absl::Seconds(1))) << "nothing is known";
  EXPECT_THAT(delay(1, 1e6), Optional(absl::Seconds(1)));
  EXPECT_THAT(delay(1, 1e-6), Optional(absl::Minutes(1)));
  // By tokens: those over the limit.
  admission.Leave("", 200);
  EXPECT_THAT(delay(450, 10), Optional(absl::Seconds(5)));
  EXPECT_EQ(RetryDelayOf(absl::UnavailableError("no")), std::nullopt);
  EXPECT_EQ(NoRoomOf(absl::ResourceExhaustedError("another")), std::nullopt);
}

TEST(AdmissionTest, OnePrincipalLeavesRoomForOthers) {
  Admission admission(
      {.max_sequences = 10, .max_queued_requests = 90, .max_queued_tokens = 1'000'000});
  // 10 run, and two thirds of the queue.
  EXPECT_EQ(Fill(admission, "a", 1), 10 + 60);
  const absl::Status refused = admission.Check("a", 1, 0);
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kShare));
  EXPECT_TRUE(RetryDelayOf(refused).has_value());
  EXPECT_GT(Fill(admission, "b", 1), 15);
  EXPECT_GT(Fill(admission, "c", 1), 4);
  EXPECT_OK(admission.Check("d", 1, 0)) << "there is always room for who comes new";
}

TEST(AdmissionTest, TokensAreSharedToo) {
  Admission admission(
      {.max_sequences = 100, .max_queued_requests = 100, .max_queued_tokens = 3000});
  EXPECT_EQ(Fill(admission, "a", 100), 20);
  EXPECT_THAT(NoRoomOf(admission.Check("a", 100, 0)), Optional(NoRoom::kShare));
  EXPECT_OK(admission.Check("b", 900, 0));
}

TEST(AdmissionTest, WithoutAQueueOnePrincipalMayRunEverything) {
  Admission admission({.max_sequences = 8, .max_queued_requests = 0, .max_queued_tokens = 1000});
  EXPECT_EQ(Fill(admission, "a", 1), 8);
}

TEST(AdmissionTest, RequestsWithoutAPrincipalAreNotShared) {
  Admission admission({.max_sequences = 2, .max_queued_requests = 30, .max_queued_tokens = 1000});
  EXPECT_EQ(Fill(admission, "", 1), 32);
}

}  // namespace
}  // namespace quern

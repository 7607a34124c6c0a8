#include "core/engine/admission.h"

#include <algorithm>

#include "core/base/retry_delay.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

using testing::Optional;

void Enter(Admission& admission, const std::string& principal, int64_t tokens, int times = 1) {
  for (int i = 0; i < times; ++i) {
    ASSERT_OK(admission.Check(principal, Priority::kNormal, tokens, {}));
    admission.Enter(principal, tokens);
  }
}

// How many requests get in until one is refused.
int Fill(Admission& admission, const std::string& principal, int64_t tokens) {
  int count = 0;
  while (admission.Check(principal, Priority::kNormal, tokens, {}).ok()) {
    admission.Enter(principal, tokens);
    ++count;
  }
  return count;
}

TEST(AdmissionTest, RequestsAreBounded) {
  Admission admission({.max_sequences = 2, .max_queued_requests = 3, .max_queued_tokens = 1000});
  Enter(admission, "", 10, 5);
  const absl::Status refused = admission.Check("", Priority::kNormal, 1, {});
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                testing::HasSubstr("5 unfinished requests")));
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kRequests));
  admission.Leave("", 10, 10);
  EXPECT_OK(admission.Check("", Priority::kNormal, 1, {}));
}

TEST(AdmissionTest, TokensAreBoundedToTheLast) {
  Admission admission({.max_sequences = 4, .max_queued_requests = 100, .max_queued_tokens = 100});
  Enter(admission, "", 60);
  EXPECT_OK(admission.Check("", Priority::kNormal, 40, {}));
  const absl::Status refused = admission.Check("", Priority::kNormal, 41, {});
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("limit of 100")));
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kTokens));
  admission.Leave("", 60, 60);
  EXPECT_OK(admission.Check("", Priority::kNormal, 1000, {})) << "one alone is always taken";
}

TEST(AdmissionTest, TheDelayIsHowLongTheRoomTakes) {
  Admission admission({.max_sequences = 1, .max_queued_requests = 3, .max_queued_tokens = 1000});
  Enter(admission, "", 200, 4);
  const auto delay = [&](int64_t tokens, double rate) {
    return RetryDelayOf(
        admission.Check("", Priority::kNormal, tokens, {.tokens_per_second = rate}));
  };
  // By requests: the mean one, 200 tokens.
  EXPECT_THAT(delay(1, 20), Optional(absl::Seconds(10)));
  EXPECT_THAT(delay(1, 0), Optional(absl::Seconds(1))) << "nothing is known";
  EXPECT_THAT(delay(1, 1e6), Optional(absl::Seconds(1)));
  EXPECT_THAT(delay(1, 1e-6), Optional(absl::Minutes(1)));
  // By tokens: those over the limit.
  admission.Leave("", 200, 200);
  EXPECT_THAT(delay(450, 10), Optional(absl::Seconds(5)));
  EXPECT_EQ(RetryDelayOf(absl::UnavailableError("no")), std::nullopt);
  EXPECT_EQ(NoRoomOf(absl::ResourceExhaustedError("another")), std::nullopt);
}

TEST(AdmissionTest, OnePrincipalLeavesRoomForOthers) {
  Admission admission(
      {.max_sequences = 10, .max_queued_requests = 90, .max_queued_tokens = 1'000'000});
  // 10 run, and two thirds of the queue.
  EXPECT_EQ(Fill(admission, "a", 1), 10 + 60);
  const absl::Status refused = admission.Check("a", Priority::kNormal, 1, {});
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kShare));
  EXPECT_TRUE(RetryDelayOf(refused).has_value());
  EXPECT_GT(Fill(admission, "b", 1), 15);
  EXPECT_GT(Fill(admission, "c", 1), 4);
  EXPECT_OK(admission.Check("d", Priority::kNormal, 1, {}))
      << "there is always room for who comes new";
}

TEST(AdmissionTest, TokensAreSharedToo) {
  Admission admission(
      {.max_sequences = 100, .max_queued_requests = 100, .max_queued_tokens = 3000});
  EXPECT_EQ(Fill(admission, "a", 100), 20);
  EXPECT_THAT(NoRoomOf(admission.Check("a", Priority::kNormal, 100, {})), Optional(NoRoom::kShare));
  EXPECT_OK(admission.Check("b", Priority::kNormal, 900, {}));
}

TEST(AdmissionTest, WithoutAQueueOnePrincipalMayRunEverything) {
  Admission admission({.max_sequences = 8, .max_queued_requests = 0, .max_queued_tokens = 1000});
  EXPECT_EQ(Fill(admission, "a", 1), 8);
}

TEST(AdmissionTest, RequestsWithoutAPrincipalAreNotShared) {
  Admission admission({.max_sequences = 2, .max_queued_requests = 30, .max_queued_tokens = 1000});
  EXPECT_EQ(Fill(admission, "", 1), 32);
}

TEST(AdmissionTest, TheWaitIsForAPlaceOrForPrompts) {
  Admission admission({.max_sequences = 4, .max_queued_requests = 100, .max_queued_tokens = 10000});
  Enter(admission, "", 100, 4);
  EngineLoad load{.tokens_per_second = 200, .prompt_tokens_per_second = 1000};
  const auto wait = [&] { return admission.ExpectedWait("", Priority::kNormal, load); };
  load.free_places = 1;
  EXPECT_EQ(wait(), absl::ZeroDuration());
  load.free_places = 0;
  EXPECT_EQ(wait(), absl::Milliseconds(500)) << "until one of 100 tokens has ended";
  load.waiting[1] = 3;
  EXPECT_EQ(wait(), absl::Seconds(2));
  load.free_places = 3;
  EXPECT_EQ(wait(), absl::Milliseconds(500));
  load.free_places = 4;
  load.prompt_tokens[1] = 300;
  EXPECT_EQ(wait(), absl::Milliseconds(300));
  load = {.waiting = {0, 100, 0}, .prompt_tokens = {0, 1000, 0}};
  EXPECT_EQ(wait(), absl::ZeroDuration()) << "nothing is known of its speed";
}

TEST(AdmissionTest, PlacesAreFreeWhenTheOnesThatRunEnd) {
  Admission admission({.max_sequences = 4, .max_queued_requests = 100, .max_queued_tokens = 10000});
  Enter(admission, "", 100, 9);
  EngineLoad load{.seconds_per_step = 0.1, .tokens_per_second = 200};
  for (const double steps : {40, 10, 42, 41}) load.AddEnd(steps);
  const auto wait = [&](int waiting) {
    load.waiting[1] = waiting;
    return admission.ExpectedWait("", Priority::kNormal, load);
  };
  EXPECT_EQ(wait(0), absl::Seconds(1));
  EXPECT_EQ(wait(1), absl::Seconds(4)) << "all but one began together, and end together";
  EXPECT_EQ(wait(2), absl::Milliseconds(4100));
  EXPECT_EQ(wait(5), absl::Milliseconds(4200 + 2 * 500)) << "two more of 100 tokens after these";
  for (int i = 0; i < 20; ++i) load.AddEnd(50 - i);
  EXPECT_EQ(load.num_next_ends, EngineLoad::kMaxNextEnds);
  EXPECT_TRUE(std::is_sorted(load.next_ends.begin(), load.next_ends.end()));
  EXPECT_EQ(load.next_ends.front(), 10);
  EXPECT_EQ(load.next_ends.back(), 42);
}

TEST(AdmissionTest, RequestsThatTookLessThanAskedCountAsWhatTheyTook) {
  Admission admission({.max_sequences = 1, .max_queued_requests = 100, .max_queued_tokens = 10000});
  Enter(admission, "", 1000, 2);
  const EngineLoad load{.tokens_per_second = 100};
  EXPECT_EQ(admission.ExpectedWait("", Priority::kNormal, load), absl::Seconds(10));
  admission.Leave("", 1000, 50);
  EXPECT_EQ(admission.ExpectedWait("", Priority::kNormal, load), absl::Milliseconds(500));
}

TEST(AdmissionTest, WaitsBeyondTheLimitAreRefusedUnlessThePriorityIsLow) {
  Admission admission({.max_sequences = 1,
                       .max_queued_requests = 100,
                       .max_queued_tokens = 10000,
                       .max_queue_wait = absl::Seconds(2)});
  EXPECT_OK(admission.Check("", Priority::kNormal, 100, {.waiting = {0, 9, 0}}))
      << "one alone is always taken";
  Enter(admission, "", 100, 20);
  EngineLoad load{.waiting = {5, 1, 0}, .tokens_per_second = 100};
  EXPECT_OK(admission.Check("", Priority::kNormal, 100, load)) << "what is low waits behind it";
  load.waiting = {5, 9, 0};
  const absl::Status refused = admission.Check("", Priority::kNormal, 100, load);
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted,
                       testing::HasSubstr("wait for about 10s, more than the limit of 2s")));
  EXPECT_THAT(NoRoomOf(refused), Optional(NoRoom::kWait));
  EXPECT_THAT(RetryDelayOf(refused), Optional(absl::Seconds(8)));
  EXPECT_OK(admission.Check("", Priority::kHigh, 100, load));
  EXPECT_OK(admission.Check("", Priority::kLow, 100, load));
}

TEST(AdmissionTest, NobodyWaitsForThePatienceOfOthers) {
  Admission admission({.max_sequences = 1, .max_queued_requests = 100, .max_queued_tokens = 10000});
  Enter(admission, "a", 100, 20);
  const EngineLoad load{.waiting = {0, 19, 0},
                        .prompt_tokens = {0, 1900, 0},
                        .tokens_per_second = 100,
                        .prompt_tokens_per_second = 100};
  EXPECT_EQ(admission.ExpectedWait("a", Priority::kNormal, load), absl::Seconds(20));
  EXPECT_EQ(admission.ExpectedWait("b", Priority::kNormal, load), absl::Seconds(1));
  Enter(admission, "b", 100, 2);
  EXPECT_EQ(admission.ExpectedWait("b", Priority::kNormal, load), absl::Seconds(5))
      << "two of each, and its place";
}

}  // namespace
}  // namespace quern

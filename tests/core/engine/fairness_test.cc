// Whose turn it is: shares of principals, priorities, ageing.

#include <cstdlib>
#include <deque>
#include <map>
#include <random>

#include "core/engine/fair_queue.h"
#include "tests/core/engine/scheduler_test_util.h"

namespace quern {
namespace {

class FairnessTest : public SchedulerTest {
 protected:
  // Tokens as the scheduler weighs them, of what has been computed so far.
  struct Service {
    int64_t weighted = 0;
    int ended = 0;
  };

  void CountStep() {
    for (const ScheduledRun& run : scheduler_->Plan(now_)) {
      Sequence& sequence = *run.sequence;
      Service& service = services_[sequence.request.principal];
      const int prompt_left = std::max(0, sequence.num_prompt_tokens - sequence.num_computed);
      service.weighted += FairQueue::kPromptTokenWeight * std::min(prompt_left, run.num_tokens) +
                          FairQueue::kOutputTokenWeight * run.num_logits;
      sequence.num_computed += run.num_tokens;
      if (run.num_logits == 1) sequence.tokens.push_back(1);
    }
    for (const auto& ended : RemoveDone()) ++services_[ended->request.principal].ended;
  }

  // So many requests of `principal` wait or run.
  int Unended(const std::string& principal) {
    int count = 0;
    const auto look = [&](const Sequence& sequence) {
      count += sequence.request.principal == principal ? 1 : 0;
    };
    scheduler_->ForEachRunning(look);
    scheduler_->ForEachWaiting(look);
    return count;
  }
  void KeepBacklog(const Request& request, int count) {
    while (Unended(request.principal) < count) Add(request);
  }

  std::map<std::string, Service> services_;
};

constexpr SchedulerLimits kSmall{
    .max_step_tokens = 32, .max_sequences = 4, .max_logits = 8, .page_tokens = 4};

TEST_F(FairnessTest, UnequalLoadsGetEqualTokens) {
  Make(kSmall, 1000);
  const Request flood{.prompt_tokens = 12, .output_tokens = 10, .principal = "flood"};
  const Request few{.prompt_tokens = 12, .output_tokens = 10, .principal = "few"};
  for (int step = 0; step < 2000; ++step) {
    KeepBacklog(flood, 50);
    KeepBacklog(few, 4);
    CountStep();
  }
  const int64_t cost = 12 * FairQueue::kPromptTokenWeight + 10 * FairQueue::kOutputTokenWeight;
  // What runs may all be of one of them, and one more is the next.
  EXPECT_LE(std::abs(services_["flood"].weighted - services_["few"].weighted),
            (kSmall.max_sequences + 1) * cost);
  EXPECT_GT(services_["few"].weighted, 50 * cost);
}

TEST_F(FairnessTest, TokensCountAndNotRequests) {
  Make(kSmall, 1000);
  const Request longs{.prompt_tokens = 80, .output_tokens = 20, .principal = "longs"};
  const Request shorts{.prompt_tokens = 4, .output_tokens = 2, .principal = "shorts"};
  for (int step = 0; step < 4000; ++step) {
    KeepBacklog(longs, 10);
    KeepBacklog(shorts, 10);
    CountStep();
  }
  EXPECT_LE(std::abs(services_["longs"].weighted - services_["shorts"].weighted),
            (kSmall.max_sequences + 1) * (80 + 2 * 20));
  EXPECT_GT(services_["shorts"].ended, 10 * services_["longs"].ended);
}

TEST_F(FairnessTest, OnePrincipalAloneGetsEverything) {
  Make(kSmall, 1000);
  for (int i = 0; i < 20; ++i) {
    Add({.prompt_tokens = 4, .output_tokens = 30, .principal = "alone"});
  }
  Step();
  EXPECT_EQ(scheduler_->num_running(), kSmall.max_sequences);
}

TEST_F(FairnessTest, NobodySavesUp) {
  Make(kSmall, 1000);
  const Request busy{.prompt_tokens = 12, .output_tokens = 10, .principal = "busy"};
  const Request late{.prompt_tokens = 12, .output_tokens = 10, .principal = "late"};
  // An early request, then a long pause in which the other one works.
  Add(late);
  for (int step = 0; step < 500; ++step) {
    KeepBacklog(busy, 10);
    CountStep();
  }
  const std::map<std::string, Service> before = services_;
  for (int step = 0; step < 200; ++step) {
    KeepBacklog(busy, 10);
    KeepBacklog(late, 10);
    CountStep();
  }
  const int64_t busy_share = services_["busy"].weighted - before.at("busy").weighted;
  const int64_t late_share = services_["late"].weighted - before.at("late").weighted;
  EXPECT_LE(std::abs(busy_share - late_share), (kSmall.max_sequences + 1) * (12 + 2 * 10));
}

TEST_F(FairnessTest, ALongPromptLeavesRoomForOthersPrompts) {
  Make(kSmall, 1000);
  Add({.prompt_tokens = 2000, .output_tokens = 1, .principal = "long"});
  Step();
  Sequence* other = Add({.prompt_tokens = 20, .output_tokens = 5, .principal = "other"});
  Step();
  const auto& plan = Step();
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].sequence, other) << "the other one had a step for itself";
  EXPECT_EQ(plan[0].num_tokens, 20);
  EXPECT_EQ(plan[1].num_tokens, 12) << "the rest of the step is not left empty";
  // The same principal's own come one after the other.
  Sequence* own = Add({.prompt_tokens = 20, .output_tokens = 5, .principal = "long"});
  Step();
  EXPECT_EQ(own->num_computed, 0);
}

TEST_F(FairnessTest, PrincipalsThatMakeNoDifferenceAreForgotten) {
  KvPagePool pool(4, 4, /*num_slots=*/4);
  FairQueue queue;
  for (int i = 0; i < 100'000; ++i) {
    GenerationRequest request{.prompt = {1}};
    request.principal = absl::StrCat("principal-", i);
    auto sequence = std::make_unique<Sequence>(request, nullptr, LogitsFn(),
                                               TextStream(nullptr, false, {}), &pool, 0, now_);
    sequence->order = i;
    queue.Add(std::move(sequence));
    const std::unique_ptr<Sequence> taken = queue.TakeNext();
    taken->account->served += 1 + i % 7;
    FairQueue::Leave(*taken);
  }
  EXPECT_LE(queue.num_accounts(), 256u);
}

TEST_F(FairnessTest, HighPassesNormalPassesLow) {
  Make({.max_step_tokens = 32, .max_sequences = 1, .max_logits = 8, .page_tokens = 4}, 100);
  Add(3);  // runs
  Step();
  const Sequence* low = Add({.prompt_tokens = 3, .priority = Priority::kLow});
  const Sequence* normal = Add({.prompt_tokens = 3});
  const Sequence* high = Add({.prompt_tokens = 3, .priority = Priority::kHigh});
  const Sequence* running = nullptr;
  for (const Sequence* wanted : {high, normal, low}) {
    scheduler_->Remove([&](const Sequence& sequence) { return sequence.num_output_tokens() > 0; });
    const auto& plan = Step();
    ASSERT_EQ(plan.size(), 1u);
    running = plan[0].sequence;
    EXPECT_EQ(running, wanted);
  }
}

TEST_F(FairnessTest, HighPassesAPrefillUnderWay) {
  Make(kSmall, 1000);
  Add({.prompt_tokens = 1000, .priority = Priority::kLow});
  Step();
  const Sequence* high = Add({.prompt_tokens = 40, .priority = Priority::kHigh});
  const auto& plan = Step();
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].sequence, high);
}

TEST_F(FairnessTest, LowIsPreemptedFirstThoughItCameFirst) {
  Make({.max_step_tokens = 64, .max_sequences = 8, .max_logits = 8, .page_tokens = 4}, 7);
  const Sequence* low = Add({.prompt_tokens = 7, .priority = Priority::kLow});
  Step();
  const Sequence* high = Add({.prompt_tokens = 7, .priority = Priority::kHigh});
  for (int i = 0; i < 40 && scheduler_->num_preemptions() == 0; ++i) Step();
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  EXPECT_EQ(low->pages.size(), 0);
  EXPECT_GT(high->pages.size(), 0);
}

TEST_F(FairnessTest, LowGetsItsTurnUnderAFloodOfHigh) {
  Make({.max_step_tokens = 32, .max_sequences = 2, .max_logits = 8, .page_tokens = 4}, 100);
  const Request flood{
      .prompt_tokens = 4, .output_tokens = 3, .principal = "flood", .priority = Priority::kHigh};
  for (const std::string& principal : {std::string("flood"), std::string("other")}) {
    KeepBacklog(flood, 10);
    Step();
    Sequence* low = Add({.prompt_tokens = 4,
                         .output_tokens = 3,
                         .principal = principal,
                         .priority = Priority::kLow});
    const absl::Time came = now_;
    while (low->admit_time == absl::InfiniteFuture() && now_ < came + absl::Hours(1)) {
      now_ += absl::Seconds(1);
      RemoveDone();
      KeepBacklog(flood, 10);
      Step();
      if (now_ <= came + kPriorityAgeing) {
        ASSERT_EQ(low->admit_time, absl::InfiniteFuture()) << "its turn has not come";
      }
    }
    EXPECT_LE(low->admit_time, came + kPriorityAgeing + absl::Seconds(10)) << principal;
  }
}

// Whatever comes, everything ends and every page comes back.
TEST_F(FairnessTest, EveryMixOfPrincipalsAndPrioritiesGetsThrough) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto number = [&](int below) { return static_cast<int>(random() % below); };
    const int max_sequences = 1 + number(6);
    const int num_pages = 10 + number(10);
    Make({.max_step_tokens = max_sequences + number(20),
          .max_sequences = max_sequences,
          .max_logits = max_sequences + number(4),
          .page_tokens = 4},
         num_pages);
    int to_come = 60;
    int unended = 0;
    for (int step = 0; to_come + unended > 0; ++step) {
      ASSERT_LT(step, 20'000) << "seed " << seed << ": somebody never gets through";
      now_ += absl::Seconds(number(3));
      for (int i = number(4); i > 0 && to_come > 0; --i, --to_come, ++unended) {
        Add({.prompt_tokens = 1 + number(30),
             .output_tokens = 1 + number(9),
             .principal = absl::StrCat(number(4)),
             .priority = static_cast<Priority>(number(kNumPriorities)),
             .scoring = number(5) == 0});
      }
      ASSERT_EQ(Step().empty(), unended == 0) << "seed " << seed;
      unended -= static_cast<int>(RemoveDone().size());
      // Cancelled wherever it is.
      if (number(8) == 0) {
        int skip = number(8);
        unended -= static_cast<int>(
            scheduler_->Remove([&](const Sequence&) { return skip-- == 0; }).size());
      }
      int held = 0;
      const auto look = [&](const Sequence& sequence) { held += sequence.pages.size(); };
      scheduler_->ForEachRunning(look);
      scheduler_->ForEachWaiting(look);
      ASSERT_EQ(pool_->num_free(), num_pages - held) << "seed " << seed;
      ASSERT_EQ(scheduler_->num_running() + scheduler_->num_waiting(), unended);
    }
    EXPECT_EQ(pool_->num_free(), num_pages);
  }
}

}  // namespace
}  // namespace quern

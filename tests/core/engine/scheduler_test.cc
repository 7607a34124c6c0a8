#include "core/engine/scheduler.h"

#include <numeric>

#include "core/engine/kv_pages.h"
#include "tests/core/engine/scheduler_test_util.h"

namespace quern {
namespace {

TEST(KvPagesTest, ALeaseGrowsInOrderAndReturnsItsPages) {
  KvPagePool pool(4, 16, /*num_slots=*/16);
  {
    PageLease lease(&pool, 0);
    EXPECT_TRUE(lease.GrowTo(2));
    EXPECT_THAT(lease.pages(), testing::ElementsAre(0, 1));
    EXPECT_TRUE(lease.GrowTo(1));
    EXPECT_EQ(lease.size(), 2);
    EXPECT_FALSE(lease.GrowTo(5));
    EXPECT_EQ(lease.size(), 2);
    EXPECT_EQ(pool.num_free(), 2);
    EXPECT_TRUE(lease.GrowTo(4));
    EXPECT_EQ(pool.num_free(), 0);
  }
  EXPECT_EQ(pool.num_free(), 4);
  PageLease again(&pool, 0);
  EXPECT_TRUE(again.GrowTo(4));
  EXPECT_THAT(again.pages(), testing::UnorderedElementsAre(0, 1, 2, 3));
}

// A lease for `tokens` as a sequence would have it: what is cached, then the rest, all computed.
std::unique_ptr<PageLease> Compute(KvPagePool& pool, uint64_t root,
                                   const std::vector<int32_t>& tokens, int* cached) {
  auto lease = std::make_unique<PageLease>(&pool, root);
  *cached = lease->TakeCached(tokens);
  EXPECT_TRUE(lease->GrowTo(static_cast<int>(tokens.size() + 3) / 4));
  lease->Publish(tokens);
  return lease;
}

std::vector<int32_t> Counting(int size, int32_t first = 0) {
  std::vector<int32_t> tokens(size);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

TEST(KvPagesTest, WholePagesAreSharedByThoseThatBeginAlike) {
  KvPagePool pool(16, 4, /*num_slots=*/16);
  const uint64_t root = PrefixRoot("");
  int cached = 0;
  const auto first = Compute(pool, root, Counting(10), &cached);
  EXPECT_EQ(cached, 0);
  std::vector<int32_t> other = Counting(10);
  other[6] = 99;
  const auto second = Compute(pool, root, other, &cached);
  EXPECT_EQ(cached, 4) << "the second page differs";
  EXPECT_EQ(second->pages()[0], first->pages()[0]);
  EXPECT_NE(second->pages()[1], first->pages()[1]);
  const auto third = Compute(pool, root, Counting(10), &cached);
  EXPECT_EQ(cached, 8);
  EXPECT_EQ(pool.num_free(), 16 - 3 - 2 - 1);
  // The last token is always left to compute.
  EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(8)), 4);
  EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(9)), 8);
  // A page is known by all that comes before it, not by its own tokens alone.
  EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(9, 4)), 0);
}

TEST(KvPagesTest, OthersPrefixesAreNotFound) {
  KvPagePool pool(16, 4, /*num_slots=*/16);
  int cached = 0;
  const auto lease = Compute(pool, PrefixRoot("alice"), Counting(10), &cached);
  EXPECT_EQ(PageLease(&pool, PrefixRoot("bob")).TakeCached(Counting(10)), 0);
  EXPECT_EQ(PageLease(&pool, 0).TakeCached(Counting(10)), 0);
  EXPECT_EQ(PageLease(&pool, PrefixRoot("alice")).TakeCached(Counting(10)), 8);
}

TEST(KvPagesTest, IdlePagesAreFoundUntilTheirRoomIsNeeded) {
  KvPagePool pool(6, 4, /*num_slots=*/16);
  const uint64_t root = PrefixRoot("");
  int cached = 0;
  Compute(pool, root, Counting(12), &cached).reset();
  Compute(pool, root, Counting(8, 100), &cached).reset();
  EXPECT_EQ(pool.num_free(), 6);
  EXPECT_EQ(pool.num_cached(), 5);
  // Takes the free page, then the page idle for longest: the last of the first sequence.
  {
    PageLease lease(&pool, root);
    EXPECT_TRUE(lease.GrowTo(2));
    EXPECT_EQ(pool.num_cached(), 4);
    EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(13)), 8);
    EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(9, 100)), 8);
    EXPECT_FALSE(lease.GrowTo(7));
    EXPECT_TRUE(lease.GrowTo(6));
    EXPECT_EQ(pool.num_cached(), 0);
  }
  EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(13)), 0);
  EXPECT_EQ(pool.num_free(), 6);
}

TEST(KvPagesTest, TheSamePrefixComputedTwiceIsKeptOnce) {
  KvPagePool pool(8, 4, /*num_slots=*/16);
  const uint64_t root = PrefixRoot("");
  PageLease a(&pool, root), b(&pool, root);
  ASSERT_TRUE(a.GrowTo(2) && b.GrowTo(2));
  a.Publish(Counting(4));
  b.Publish(Counting(4));  // computed beside it
  b.Publish(Counting(8));  // goes on from the one that was there first
  a.Release();
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(PageLease(&pool, root).TakeCached(Counting(9)), 8);
  b.Release();
  EXPECT_EQ(pool.num_free(), 8);
  EXPECT_EQ(pool.num_cached(), 2);
}

TEST_F(SchedulerTest, DecodeGoesFirstAndPrefillFillsTheStep) {
  Make({.max_step_tokens = 8, .max_sequences = 4, .max_logits = 8, .page_tokens = 4}, 100);
  Sequence* a = Add(3);
  Step();
  Sequence* b = Add(20);
  const auto& plan = Step();
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].sequence, a);
  EXPECT_EQ(plan[0].num_tokens, 1);
  EXPECT_EQ(plan[1].sequence, b);
  EXPECT_EQ(plan[1].num_tokens, 7);
  EXPECT_EQ(plan[1].num_logits, 0) << "a prefill that is not done gives no token";
}

TEST_F(SchedulerTest, NoMoreThanMaxSequencesRun) {
  Make({.max_step_tokens = 64, .max_sequences = 2, .max_logits = 8, .page_tokens = 4}, 100);
  EXPECT_EQ(scheduler_->num_free_places(), 2);
  for (int i = 0; i < 5; ++i) Add(3);
  EXPECT_EQ(Step().size(), 2u);
  EXPECT_EQ(scheduler_->num_running(), 2);
  EXPECT_EQ(scheduler_->num_waiting(), 3);
  EXPECT_EQ(scheduler_->num_free_places(), 0);
}

TEST_F(SchedulerTest, ARequestWaitsForPagesAndNobodyOvertakesIt) {
  Make({.max_step_tokens = 64, .max_sequences = 8, .max_logits = 8, .page_tokens = 4}, 10);
  Sequence* a = Add(20);
  Add(24);
  Add(1);
  EXPECT_EQ(Step().size(), 1u);
  EXPECT_EQ(scheduler_->num_waiting(), 2);
  EXPECT_EQ(scheduler_->num_free_places(), 0) << "there are no pages for another";
  auto removed = scheduler_->Remove([&](const Sequence& sequence) { return &sequence == a; });
  ASSERT_EQ(removed.size(), 1u);
  removed.clear();
  EXPECT_EQ(Step().size(), 2u);
  EXPECT_EQ(scheduler_->num_free_places(), 6);
  Add(100);
  Step();
  EXPECT_EQ(scheduler_->num_free_places(), 0);
  scheduler_->Remove([](const Sequence&) { return true; });
  EXPECT_EQ(scheduler_->num_free_places(), 8) << "nothing waits any more";
}

TEST_F(SchedulerTest, TheYoungestIsPreemptedAndComesBackInItsPlace) {
  Make({.max_step_tokens = 64, .max_sequences = 8, .max_logits = 8, .page_tokens = 4}, 7);
  Sequence* a = Add(7);
  Sequence* b = Add(7);
  Sequence* c = Add(5);
  Step();
  EXPECT_EQ(scheduler_->num_running(), 2) << "a page stays free for each that runs";
  for (int i = 0; i < 40 && scheduler_->num_preemptions() == 0; ++i) Step();
  EXPECT_EQ(scheduler_->num_preemptions(), 1);
  EXPECT_EQ(scheduler_->num_running(), 1);
  EXPECT_EQ(b->num_computed, 0);
  EXPECT_EQ(b->pages.size(), 0);
  EXPECT_GT(a->num_computed, 7);
  scheduler_->Remove([&](const Sequence& sequence) { return &sequence == a; });
  const auto& plan = Step();
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].sequence, b) << "it came before c";
  EXPECT_EQ(plan[0].num_tokens, b->num_tokens() - 1);
  EXPECT_EQ(plan[1].sequence, c);
}

TEST_F(SchedulerTest, ScoringTakesOneRowAToken) {
  Make({.max_step_tokens = 64, .max_sequences = 2, .max_logits = 10, .page_tokens = 4}, 100);
  Sequence* a = Add(3);
  Step();
  Sequence* b = Add(25, /*scoring=*/true);
  int rows = 0;
  while (b->num_pending() > 0) {
    const auto& plan = Step();
    int step_rows = 0;
    for (const ScheduledRun& run : plan) {
      step_rows += run.num_logits;
      if (run.sequence == b) rows += run.num_logits;
    }
    EXPECT_LE(step_rows, 10);
  }
  EXPECT_EQ(rows, 25);
  EXPECT_GT(a->num_output_tokens(), 2) << "decode goes on beside it";
}

TEST_F(SchedulerTest, EveryMixOfSequencesGetsThrough) {
  uint32_t state = 1;
  const auto number = [&](uint32_t below) {
    return (state = state * 1664525 + 1013904223) / 256 % below;
  };
  for (int round = 0; round < 200; ++round) {
    const int max_sequences = 1 + static_cast<int>(number(6));
    Make({.max_step_tokens = max_sequences + static_cast<int>(number(20)),
          .max_sequences = max_sequences,
          .max_logits = max_sequences + static_cast<int>(number(4)),
          .page_tokens = 4},
         /*num_pages=*/10);
    int left = 12;
    for (int i = 0; i < left; ++i) Add(1 + static_cast<int>(number(30)), number(4) == 0);
    for (int step = 0; left > 0; ++step) {
      ASSERT_LT(step, 5000) << "round " << round << ": somebody never gets through";
      const auto& plan = Step();
      ASSERT_FALSE(plan.empty());
      ASSERT_LE(Tokens(plan), max_sequences + 20);
      left -= static_cast<int>(scheduler_
                                   ->Remove([](const Sequence& sequence) {
                                     return sequence.scoring() ? sequence.num_pending() == 0
                                                               : sequence.num_tokens() > 36;
                                   })
                                   .size());
    }
    EXPECT_EQ(pool_->num_free(), 10);
  }
}

}  // namespace
}  // namespace quern

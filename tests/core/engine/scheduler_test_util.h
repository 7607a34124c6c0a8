#ifndef QUERN_TESTS_CORE_ENGINE_SCHEDULER_TEST_UTIL_H_
#define QUERN_TESTS_CORE_ENGINE_SCHEDULER_TEST_UTIL_H_

#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/scheduler.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {

// A scheduler without an engine: the test takes the steps and time.
class SchedulerTest : public testing::Test {
 protected:
  struct Request {
    int prompt_tokens = 0;
    int output_tokens = 0;  // for RemoveDone
    std::string principal;
    Priority priority = Priority::kNormal;
    bool scoring = false;
  };

  void Make(SchedulerLimits limits, int num_pages) {
    page_tokens_ = limits.page_tokens;
    scheduler_ = nullptr;
    pool_ = std::make_unique<KvPagePool>(num_pages, limits.page_tokens, limits.max_sequences);
    scheduler_ = std::make_unique<Scheduler>(limits, pool_.get());
  }

  Sequence* Add(const Request& wanted) {
    GenerationRequest request{.prompt = std::vector<int32_t>(wanted.prompt_tokens, 1)};
    request.max_output_tokens = wanted.output_tokens;
    request.principal = wanted.principal;
    request.priority = wanted.priority;
    auto sequence = std::make_unique<Sequence>(
        request, nullptr,
        wanted.scoring ? LogitsFn([](int, absl::Span<const float>) {}) : LogitsFn(),
        TextStream(nullptr, false, {}), pool_.get(), 0, now_);
    Sequence* result = sequence.get();
    scheduler_->Add(std::move(sequence));
    return result;
  }
  Sequence* Add(int prompt_tokens, bool scoring = false) {
    return Add({.prompt_tokens = prompt_tokens, .scoring = scoring});
  }

  // One step as the engine does it: every sequence whose tokens are all computed gets another.
  const std::vector<ScheduledRun>& Step() {
    const std::vector<ScheduledRun>& plan = scheduler_->Plan(now_);
    for (const ScheduledRun& run : plan) {
      const int capacity = run.sequence->pages.size() * page_tokens_;
      EXPECT_LE(run.sequence->num_computed + run.num_tokens, capacity) << "pages are missing";
      run.sequence->num_computed += run.num_tokens;
      if (run.sequence->scoring()) {
        run.sequence->num_scored += run.num_logits;
      } else if (run.num_logits == 1) {
        run.sequence->tokens.push_back(1);
      }
    }
    return plan;
  }

  // Ends those whose answer is as long as was asked.
  std::vector<std::unique_ptr<Sequence>> RemoveDone() {
    return scheduler_->Remove([](const Sequence& sequence) {
      return sequence.scoring()
                 ? sequence.num_pending() == 0
                 : sequence.num_output_tokens() >= sequence.request.max_output_tokens;
    });
  }

  static int Tokens(const std::vector<ScheduledRun>& plan) {
    return std::accumulate(plan.begin(), plan.end(), 0,
                           [](int sum, const ScheduledRun& run) { return sum + run.num_tokens; });
  }

  absl::Time now_ = absl::FromUnixSeconds(1700000000);
  int page_tokens_ = 0;
  std::unique_ptr<KvPagePool> pool_;
  std::unique_ptr<Scheduler> scheduler_;
};

}  // namespace quern

#endif  // QUERN_TESTS_CORE_ENGINE_SCHEDULER_TEST_UTIL_H_

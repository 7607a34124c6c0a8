// Steps of the engine allocate nothing once the buffers are there: memory that each step asks for
// costs time, and a server that runs for weeks wants none of it.

#include <array>
#include <atomic>
#include <cstdlib>
#include <new>

#include "core/engine/engine.h"
#include "tests/core/engine/engine_test_util.h"

// Sanitizers have their own.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace quern {
namespace {
// Of each thread: what it has asked the heap for.
thread_local int64_t num_allocations = 0;
}  // namespace
}  // namespace quern

// (Inlined, GCC takes the pair of them for a mistake.)
[[gnu::noinline]] void* operator new(size_t size) {
  ++quern::num_allocations;
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace quern {
namespace {

// Allocations of the engine thread from one step to the next.
class AllocationCounter final : public StepObserver {
 public:
  void OnStep(absl::Duration, int, int) override {
    if (num_steps_ < static_cast<int>(steps_.size())) {
      steps_[num_steps_++] = num_allocations - before_;
    }
    before_ = num_allocations;
  }
  int num_steps() const { return num_steps_; }
  int64_t step(int i) const { return steps_[i]; }

 private:
  std::array<int64_t, 512> steps_{};
  std::atomic<int> num_steps_{0};
  int64_t before_ = 0;
};

class SilentSink final : public TokenSink {
 public:
  void OnTokens(absl::Span<const int32_t>, absl::string_view) override {}
  void OnEnd(absl::StatusOr<GenerationResult> result) override {
    EXPECT_OK(result);
    done_.Notify();
  }
  bool cancelled() const override { return false; }
  void Wait() { done_.Wait(); }

 private:
  Event done_;
};

class AllocationTest : public testing::TestWithParam<KvCacheType> {};

TEST_P(AllocationTest, DecodeStepsAllocateNothing) {
  AllocationCounter counter;
  ASSERT_OK_AND_ASSIGN(const auto engine,
                       Engine::Create({.num_threads = 2, .kv_cache_bytes = 8 << 20}, &counter));
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(*PackedTinySource({}, /*bits=*/4),
                                                             {.kv_cache_type = GetParam()}));
  std::vector<std::shared_ptr<SilentSink>> sinks;
  for (int i = 0; i < 4; ++i) {
    GenerationRequest request =
        i % 2 == 0 ? Greedy(Prompt(5 + i, i), 200) : Sampled(Prompt(5 + i, i), 200, i);
    if (i == 3) {
      // Its states are all known after the first steps.
      ASSERT_OK_AND_ASSIGN(const CompiledConstraint compiled,
                           engine->CompileConstraint(
                               model, {.kind = ConstraintSpec::Kind::kRegex, .text = "[ab]*"}));
      request.constraint = compiled.constraint;
      request.min_output_tokens = 200;
    }
    request.ignore_end_of_text = i != 3;
    sinks.push_back(std::make_shared<SilentSink>());
    ASSERT_OK(engine->Submit(model, std::move(request), sinks.back()));
  }
  for (const auto& sink : sinks) sink->Wait();
  ASSERT_GE(counter.num_steps(), 200);
  int allocating = 0;
  int64_t allocations = 0;
  // The first have the prompts, the last end the requests.
  for (int i = 20; i < 180; ++i) {
    allocating += counter.step(i) > 0 ? 1 : 0;
    allocations += counter.step(i);
  }
  // A sequence's lists of tokens and pages double now and then.
  EXPECT_LE(allocating, 16) << allocations << " allocations in 160 steps";
  EXPECT_LE(allocations, 32);
}

INSTANTIATE_TEST_SUITE_P(All, AllocationTest,
                         testing::Values(KvCacheType::kFloat16, KvCacheType::kInt4),
                         [](const auto& info) { return std::string(KvCacheTypeName(info.param)); });

}  // namespace
}  // namespace quern

#endif

// Requests that are cancelled, refused or cut off; models that come and go.

#include <algorithm>
#include <random>
#include <string>
#include <thread>

#include "core/base/retry_delay.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

constexpr int64_t kTokenBytes = 256;  // of the tiny model's keys and values

struct EngineAndModel {
  std::unique_ptr<Engine> engine;
  ModelHandle model = 0;
};

EngineAndModel Make(const EngineOptions& options, Clock* clock = nullptr) {
  auto engine = Engine::Create(options, nullptr, clock);
  CHECK(engine.ok()) << engine.status();
  auto model = (*engine)->Load(TinySource({}));
  CHECK(model.ok()) << model.status();
  return {.engine = *std::move(engine), .model = *model};
}

// Holds the engine thread in the hook until it is opened.
class Gate {
 public:
  CollectingSink::Hook AtToken(size_t count) {
    return [this, count](CollectingSink& sink) {
      if (sink.ids().size() != count) return;
      reached_.Notify();
      opened_.Wait();
    };
  }
  void WaitReached() { reached_.Wait(); }
  void Open() { opened_.Notify(); }

 private:
  Event reached_;
  Event opened_;
};

TEST(CancelTest, ARunningRequestEndsBeforeItsNextToken) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20});
  auto sink = Start(*engine, model, Greedy(Prompt(20, 1), 100), [](CollectingSink& s) {
    if (s.ids().size() == 3) s.Cancel();
  });
  EXPECT_THAT(sink->Wait(), StatusIs(absl::StatusCode::kCancelled, testing::_));
  EXPECT_EQ(sink->ids().size(), 3u);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.steps, 3) << "no step was run for it after the cancellation";
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_EQ(stats.requests_running, 0);
  EXPECT_EQ(stats.discarded_tokens, 22);
  EXPECT_EQ(sink->discarded_tokens(), 22);
}

TEST(CancelTest, PagesAreFreeForOthersAtTheNextStep) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20});
  const Engine& watched = *engine;
  std::shared_ptr<CollectingSink> victim;
  int64_t pages_before = 0;
  int64_t pages_after = 0;
  Gate gate;
  auto other = Start(*engine, model, Greedy(Prompt(4, 1), 30), [&](CollectingSink& s) {
    if (s.ids().size() == 1) gate.AtToken(1)(s);
    // Each step publishes its stats when it is planned.
    if (s.ids().size() == 5) {
      pages_before = watched.Stats().kv_pages_used;
      victim->Cancel();
    }
    if (s.ids().size() == 6) pages_after = watched.Stats().kv_pages_used;
  });
  gate.WaitReached();
  victim = Start(*engine, model, Greedy(Prompt(100, 2), 30));
  gate.Open();
  EXPECT_THAT(victim->Wait(), StatusIs(absl::StatusCode::kCancelled, testing::_));
  EXPECT_OK(other->Wait());
  EXPECT_EQ(pages_before, 1 + 7);
  EXPECT_EQ(pages_after, 1);
}

TEST(CancelTest, AQueuedRequestEndsWhileOthersRun) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1});
  auto running = std::make_shared<CollectingSink*>(nullptr);
  size_t tokens_at_end = 0;
  std::shared_ptr<CollectingSink> queued;
  Gate gate;
  auto first = Start(*engine, model, Greedy(Prompt(4, 1), 50), [&](CollectingSink& s) {
    *running = &s;
    if (s.ids().size() == 1) gate.AtToken(1)(s);
    if (s.ids().size() == 5) queued->Cancel();
  });
  gate.WaitReached();
  queued = Start(*engine, model, Greedy(Prompt(4, 2), 50), {},
                 [&](CollectingSink&) { tokens_at_end = (*running)->ids().size(); });
  gate.Open();
  EXPECT_THAT(queued->Wait(), StatusIs(absl::StatusCode::kCancelled, testing::_));
  EXPECT_OK(first->Wait());
  EXPECT_EQ(tokens_at_end, 5u);
  EXPECT_TRUE(queued->ids().empty());
}

TEST(DeadlineTest, AQueuedRequestExpiresWhileOthersRun) {
  ManualClock clock;
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1}, &clock);
  Gate gate;
  auto first = Start(*engine, model, Greedy(Prompt(4, 1), 20), gate.AtToken(2));
  gate.WaitReached();
  GenerationRequest request = Greedy(Prompt(4, 2), 20);
  request.deadline = clock.Now() + absl::Seconds(1);
  auto queued = Start(*engine, model, request);
  clock.Advance(absl::Seconds(2));
  gate.Open();
  EXPECT_THAT(queued->Wait(), StatusIs(absl::StatusCode::kDeadlineExceeded, testing::_));
  EXPECT_OK(first->Wait());
}

TEST(DeadlineTest, AnExpiredRequestIsNotPrefilled) {
  ManualClock clock;
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20}, &clock);
  GenerationRequest request = Greedy(Prompt(100, 2), 20);
  request.deadline = clock.Now();
  auto sink = Start(*engine, model, request);
  EXPECT_THAT(sink->Wait(), StatusIs(absl::StatusCode::kDeadlineExceeded, testing::_));
  EXPECT_EQ(engine->Stats().steps, 0);
  EXPECT_EQ(sink->discarded_tokens(), 0);
}

TEST(TimeLimitTest, TheAnswerEndsAsFarAsItHasCome) {
  ManualClock clock;
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20}, &clock);
  GenerationRequest request = Greedy(Prompt(10, 2), 50);
  request.time_limit = absl::Seconds(3);
  auto sink = Start(*engine, model, request, [&](CollectingSink& s) {
    if (s.ids().size() == 4) clock.Advance(absl::Seconds(3));
  });
  ASSERT_OK(sink->Wait());
  EXPECT_EQ(sink->result()->finish_reason, FinishReason::kTimeLimit);
  EXPECT_EQ(sink->result()->output_tokens, 4);
  EXPECT_EQ(sink->ids().size(), 4u);
  EXPECT_EQ(sink->result()->total_duration, absl::Seconds(3));
  // All the text of these ids, what was held back included.
  ASSERT_OK_AND_ASSIGN(const auto tokenizer, engine->GetTokenizer(model));
  EXPECT_EQ(sink->text(), tokenizer->Decode(sink->ids()));
  EXPECT_EQ(engine->Stats().discarded_tokens, 0);
}

TEST(TimeLimitTest, AQueuedRequestEndsWithNothing) {
  ManualClock clock;
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1}, &clock);
  Gate gate;
  auto first = Start(*engine, model, Greedy(Prompt(4, 1), 20), gate.AtToken(2));
  gate.WaitReached();
  GenerationRequest request = Greedy(Prompt(4, 2), 20);
  request.time_limit = absl::Seconds(1);
  auto queued = Start(*engine, model, request);
  clock.Advance(absl::Seconds(2));
  gate.Open();
  ASSERT_OK(queued->Wait());
  EXPECT_EQ(queued->result()->finish_reason, FinishReason::kTimeLimit);
  EXPECT_EQ(queued->result()->output_tokens, 0);
  EXPECT_EQ(queued->result()->queue_duration, absl::Seconds(2));
  EXPECT_OK(first->Wait());
}

TEST(TimeLimitTest, MustBeMoreThanNothing) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20});
  GenerationRequest request = Greedy(Prompt(4, 2), 20);
  request.time_limit = absl::ZeroDuration();
  EXPECT_THAT(engine->Submit(model, request, std::make_shared<CollectingSink>()),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("time_limit")));
}

TEST(QueueTest, TokensAreBoundedAndTheDelayFollowsTheSpeed) {
  ManualClock clock;
  auto [engine, model] =
      Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1, .max_queued_tokens = 150}, &clock);
  Gate gate;
  // A prefill of 40 tokens and 9 more in 10 seconds.
  auto running = Start(*engine, model, Greedy(Prompt(40, 0), 20), [&](CollectingSink& s) {
    if (s.ids().size() <= 10) clock.Advance(absl::Seconds(1));
    gate.AtToken(11)(s);
  });
  gate.WaitReached();
  EXPECT_EQ(engine->Stats().queued_tokens, 60);
  auto queued = Start(*engine, model, Greedy(Prompt(10, 1), 30));
  EXPECT_OK(engine->CheckRoom(""));
  const auto submit = [&engine = engine, model = model](int output_tokens) {
    auto sink = std::make_shared<CollectingSink>();
    return engine->Submit(model, Greedy(Prompt(10, 2), output_tokens), sink);
  };
  const absl::Status refused = submit(41);
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("tokens")));
  EXPECT_THAT(NoRoomOf(refused), testing::Optional(NoRoom::kTokens));
  EXPECT_EQ(RetryDelayOf(refused), absl::Seconds(1)) << "one token too many";
  // 51 too many. The weights of older steps have faded, so the speed is less than the mean.
  const absl::Duration delay = RetryDelayOf(submit(91)).value();
  EXPECT_GT(delay, absl::Seconds(51 / 4.9));
  EXPECT_LT(delay, absl::Seconds(51 / 3.0));
  EXPECT_OK(submit(40));
  gate.Open();
  EXPECT_OK(running->Wait());
  EXPECT_OK(queued->Wait());
  engine->Drain(absl::InfiniteDuration());
  EXPECT_EQ(engine->Stats().queued_tokens, 0);
  EXPECT_THAT(engine->CheckRoom(""), StatusIs(absl::StatusCode::kUnavailable, testing::_));
}

TEST(QueueTest, WhoWouldWaitForTooLongIsRefused) {
  ManualClock clock;
  auto [engine, model] = Make(
      {.kv_cache_bytes = 1 << 20, .max_sequences = 2, .max_queue_wait = absl::Seconds(30)}, &clock);
  Gate gate;
  // A token a second.
  auto first = Start(*engine, model, Greedy(Prompt(40, 0), 20), [&](CollectingSink& s) {
    clock.Advance(absl::Seconds(1));
    gate.AtToken(11)(s);
  });
  gate.WaitReached();
  // There is a place for the second, none for the third: it waits for about 50 tokens at about 5 a
  // second.
  auto second = Start(*engine, model, Greedy(Prompt(10, 1), 30));
  auto third = Start(*engine, model, Greedy(Prompt(10, 2), 30));
  const auto submit = [&engine = engine, model = model](Priority priority) {
    GenerationRequest request = Greedy(Prompt(10, 3), 30);
    request.priority = priority;
    return engine->Submit(model, std::move(request), std::make_shared<CollectingSink>());
  };
  EXPECT_OK(submit(Priority::kNormal));
  const absl::Status refused = submit(Priority::kNormal);
  EXPECT_THAT(NoRoomOf(refused), testing::Optional(NoRoom::kWait)) << refused;
  EXPECT_THAT(NoRoomOf(engine->CheckRoom("", model, Priority::kNormal)),
              testing::Optional(NoRoom::kWait));
  EXPECT_OK(engine->CheckRoom("", model, Priority::kHigh));
  EXPECT_OK(engine->CheckRoom("")) << "how long it would wait is a model's";
  ASSERT_OK_AND_ASSIGN(const ModelHandle other, engine->Load(TinySource({})));
  EXPECT_OK(engine->CheckRoom("", other, Priority::kNormal));
  EXPECT_OK(submit(Priority::kLow));
  gate.Open();
  for (const auto& sink : {first, second, third}) EXPECT_OK(sink->Wait());
}

TEST(QueueTest, HighPriorityIsTakenFirst) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1});
  Gate gate;
  auto running = Start(*engine, model, Greedy(Prompt(4, 0), 2), gate.AtToken(1));
  gate.WaitReached();
  std::vector<Priority> ended;  // on the engine thread
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (const Priority priority : {Priority::kLow, Priority::kNormal, Priority::kHigh}) {
    GenerationRequest request = Greedy(Prompt(4, 1), 3);
    request.priority = priority;
    sinks.push_back(Start(*engine, model, request, {},
                          [&ended, priority](CollectingSink&) { ended.push_back(priority); }));
  }
  gate.Open();
  for (const auto& sink : sinks) EXPECT_OK(sink->Wait());
  EXPECT_THAT(ended, testing::ElementsAre(Priority::kHigh, Priority::kNormal, Priority::kLow));
}

TEST(QueueTest, AFloodIsRefusedAndTakesNoMemory) {
  auto [engine, model] =
      Make({.kv_cache_bytes = 1 << 20, .max_sequences = 2, .max_queued_requests = 6});
  Gate gate;
  auto running = Start(*engine, model, Greedy(Prompt(4, 0), 2), gate.AtToken(1));
  gate.WaitReached();
  std::vector<std::weak_ptr<CollectingSink>> sinks;
  int refused = 0;
  for (int i = 0; i < 10'000; ++i) {
    auto sink = std::make_shared<CollectingSink>();
    sinks.push_back(sink);
    const absl::Status status = engine->Submit(model, Greedy(Prompt(4, i), 2), sink);
    if (status.ok()) continue;
    ++refused;
    ASSERT_TRUE(RetryDelayOf(status).has_value());
  }
  EXPECT_EQ(refused, 10'000 - 7);
  EXPECT_EQ(
      std::count_if(sinks.begin(), sinks.end(), [](const auto& sink) { return !sink.expired(); }),
      7)
      << "nothing of a refused request is kept";
  EXPECT_EQ(engine->Stats().requests_waiting, 7);
  gate.Open();
  EXPECT_OK(running->Wait());
  engine->Drain(absl::InfiniteDuration());
}

TEST(QueueTest, IsFullAtItsLimitAndHasRoomAgainAfterAnEnd) {
  auto [engine, model] =
      Make({.kv_cache_bytes = 1 << 20, .max_sequences = 2, .max_queued_requests = 3});
  Gate gate;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  sinks.push_back(Start(*engine, model, Greedy(Prompt(4, 0), 2), gate.AtToken(1)));
  gate.WaitReached();
  for (int i = 1; i < 5; ++i) sinks.push_back(Start(*engine, model, Greedy(Prompt(4, i), 2)));
  EXPECT_EQ(engine->Stats().requests_waiting, 4);
  EXPECT_THAT(engine->Submit(model, Greedy(Prompt(4, 9), 2), std::make_shared<CollectingSink>()),
              StatusIs(absl::StatusCode::kResourceExhausted, testing::HasSubstr("5 unfinished")));
  gate.Open();
  for (const auto& sink : sinks) EXPECT_OK(sink->Wait());
  EXPECT_OK(Start(*engine, model, Greedy(Prompt(4, 9), 2))->Wait());
}

TEST(UnloadTest, LetsStreamsEndAndRefusesNewOnes) {
  auto [engine, model] = Make({.num_threads = 2, .kv_cache_bytes = 1 << 20});
  Gate gate;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  sinks.push_back(Start(*engine, model, Greedy(Prompt(4, 0), 20), gate.AtToken(3)));
  for (int i = 1; i < 6; ++i) sinks.push_back(Start(*engine, model, Greedy(Prompt(4, i), 20)));
  gate.WaitReached();
  std::thread unloader([&engine = engine, model = model] { EXPECT_OK(engine->Unload(model)); });
  absl::Status refused;
  while (refused.ok()) {
    auto sink = std::make_shared<CollectingSink>();
    refused = engine->Submit(model, Greedy(Prompt(4, 9), 1), sink);
    if (absl::IsResourceExhausted(refused)) refused = absl::OkStatus();
    PauseBetweenLooks();
  }
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kFailedPrecondition, testing::_));
  gate.Open();
  unloader.join();
  for (const auto& sink : sinks) {
    EXPECT_OK(sink->result()) << "unloading is over, so this has ended";
    EXPECT_EQ(sink->ids().size(), 20u);
  }
  EXPECT_THAT(engine->Info(model), StatusIs(absl::StatusCode::kNotFound, testing::_));
  EXPECT_THAT(engine->Unload(model), StatusIs(absl::StatusCode::kNotFound, testing::_));
  EXPECT_EQ(engine->Stats().kv_pages_total, 0);
}

TEST(UnloadTest, ModelsComeAndGoUnderStreams) {
  ASSERT_OK_AND_ASSIGN(const auto engine,
                       Engine::Create({.num_threads = 2, .kv_cache_bytes = 1 << 18}));
  ASSERT_OK_AND_ASSIGN(const ModelHandle stays, engine->Load(TinySource({})));
  const std::vector<int32_t> wanted = [&] {
    auto sink = Start(*engine, stays, Greedy(Prompt(4, 0), 200));
    EXPECT_OK(sink->Wait());
    return sink->ids();
  }();
  for (int round = 0; round < 20; ++round) {
    auto stream = Start(*engine, stays, Greedy(Prompt(4, 0), 200));
    ASSERT_OK_AND_ASSIGN(const ModelHandle comes, engine->Load(TinySource({.seed = 2})));
    auto sink = Start(*engine, comes, Greedy(Prompt(4, 0), 5));
    EXPECT_OK(engine->Unload(comes));
    EXPECT_OK(sink->result());
    EXPECT_OK(stream->Wait());
    EXPECT_EQ(stream->ids(), wanted);
  }
}

TEST(DrainTest, LetsRequestsEndWithinTheGrace) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20});
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 5; ++i) sinks.push_back(Start(*engine, model, Greedy(Prompt(4, i), 20)));
  engine->Drain(absl::InfiniteDuration());
  for (const auto& sink : sinks) EXPECT_OK(sink->result());
  EXPECT_THAT(engine->Submit(model, Greedy(Prompt(4, 9), 2), std::make_shared<CollectingSink>()),
              StatusIs(absl::StatusCode::kUnavailable, testing::_));
  EXPECT_OK(engine->Unload(model));
}

TEST(DrainTest, EndsTheRestAfterTheGrace) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1});
  Gate gate;
  auto running = Start(*engine, model, Greedy(Prompt(4, 1), 200), gate.AtToken(3));
  gate.WaitReached();
  auto queued = Start(*engine, model, Greedy(Prompt(4, 2), 200));
  std::thread drainer([&engine = engine] { engine->Drain(absl::ZeroDuration()); });
  gate.Open();
  drainer.join();
  // The running one may have had the time to end by itself; the one behind it cannot have started
  // and ended too.
  EXPECT_THAT(queued->result(), StatusIs(absl::StatusCode::kUnavailable, testing::_));
  EXPECT_TRUE(running->result().ok() || absl::IsUnavailable(running->result().status()));
  EXPECT_EQ(engine->Stats().kv_pages_used, 0);
}

TEST(ShutdownTest, DestroyingTheEngineEndsWhatRuns) {
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20, .max_sequences = 1});
  Gate gate;
  auto running = Start(*engine, model, Greedy(Prompt(4, 1), 200), gate.AtToken(1));
  gate.WaitReached();
  auto queued = Start(*engine, model, Greedy(Prompt(4, 2), 200));
  std::thread destroyer([&engine = engine] { engine.reset(); });
  gate.Open();
  destroyer.join();
  EXPECT_THAT(queued->result(), StatusIs(absl::StatusCode::kUnavailable, testing::_));
}

TEST(HealthTest, AStuckStepShowsOnlyWhileWorkWaits) {
  ManualClock clock;
  auto [engine, model] = Make({.kv_cache_bytes = 1 << 20}, &clock);
  clock.Advance(absl::Hours(1));
  EXPECT_TRUE(engine->Healthy(absl::Seconds(5))) << "idle is healthy";
  Gate gate;
  auto sink = Start(*engine, model, Greedy(Prompt(4, 1), 5), gate.AtToken(2));
  gate.WaitReached();
  EXPECT_TRUE(engine->Healthy(absl::Seconds(5)));
  clock.Advance(absl::Seconds(6));
  EXPECT_FALSE(engine->Healthy(absl::Seconds(5)));
  gate.Open();
  EXPECT_OK(sink->Wait());
  EXPECT_TRUE(engine->Healthy(absl::Seconds(5)));
}

TEST(StatsTest, CountTokensAndStepsAndTheObserverHearsOfEach) {
  struct Observer final : StepObserver {
    void OnStep(absl::Duration, int num_tokens, int num_sequences) override {
      ++steps;
      tokens += num_tokens;
      sequences += num_sequences;
    }
    int steps = 0;
    int tokens = 0;
    int sequences = 0;
  } observer;
  auto engine = Engine::Create({.kv_cache_bytes = 1 << 20}, &observer);
  ASSERT_OK(engine);
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, (*engine)->Load(TinySource({})));
  EXPECT_OK(Start(**engine, model, Greedy(Prompt(10, 1), 5))->Wait());
  const EngineStats stats = (*engine)->Stats();
  EXPECT_EQ(stats.steps, 5);
  EXPECT_EQ(stats.prompt_tokens, 10);
  EXPECT_EQ(stats.generated_tokens, 5);
  EXPECT_EQ(stats.discarded_tokens, 0);
  EXPECT_EQ(stats.kv_pages_total, (1 << 20) / (16 * kTokenBytes));
  engine->reset();
  EXPECT_EQ(observer.steps, 5);
  EXPECT_EQ(observer.tokens, 14);
  EXPECT_EQ(observer.sequences, 5);
}

TEST(LeakTest, AThousandRequestsWithCancellationsLeaveNothing) {
  // Few pages, so that there are preemptions, and more requests than places.
  auto [engine, model] = Make({.num_threads = 2,
                               .page_tokens = 4,
                               .kv_cache_bytes = 256 * kTokenBytes,
                               .max_step_tokens = 64,
                               .max_sequences = 16,
                               .max_queued_requests = 50});
  std::mt19937 random(3);
  const auto number = [&](int below) { return static_cast<int>(random() % below); };
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  size_t next_to_wait = 0;
  for (int i = 0; i < 1000; ++i) {
    const int cancel_at = number(3) == 0 ? number(20) : -1;
    auto sink = std::make_shared<CollectingSink>([cancel_at](CollectingSink& s) {
      if (static_cast<int>(s.ids().size()) == cancel_at) s.Cancel();
    });
    if (cancel_at == 0) sink->Cancel();
    GenerationRequest request = Sampled(Prompt(1 + number(60), i), 1 + number(20), i);
    request.principal = std::to_string(number(3));
    request.priority = static_cast<Priority>(number(kNumPriorities));
    while (true) {
      const absl::Status status = engine->Submit(model, request, sink);
      if (status.ok()) break;
      ASSERT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, testing::_));
      // A principal at its share waits for its own; the oldest may be another's.
      ASSERT_LT(next_to_wait, sinks.size());
      sinks[next_to_wait++]->Wait();
    }
    sinks.push_back(sink);
    // From outside, at whatever moment that is.
    if (number(10) == 0) sinks[number(static_cast<int>(sinks.size()))]->Cancel();
  }
  int cancelled = 0;
  for (const auto& sink : sinks) {
    const auto& result = sink->Wait();
    if (absl::IsCancelled(result.status())) ++cancelled;
    EXPECT_TRUE(result.ok() || absl::IsCancelled(result.status())) << result.status();
  }
  EXPECT_GT(cancelled, 100);
  const EngineStats stats = engine->Stats();
  EXPECT_GT(stats.preemptions, 0);
  EXPECT_EQ(stats.queued_tokens, 0);
  EXPECT_EQ(stats.kv_pages_used, 0);
  EXPECT_EQ(stats.kv_pages_total, 64);
  EXPECT_EQ(stats.requests_running, 0);
  EXPECT_EQ(stats.requests_waiting, 0);
  engine->Drain(absl::InfiniteDuration());
}

}  // namespace
}  // namespace quern

// Cancellation, reasons, events and the estimate of progress.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "services/quantizer/cancellation.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/evaluation.h"
#include "services/quantizer/events.h"
#include "services/quantizer/progress.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

class FakeClock final : public Clock {
 public:
  absl::Time Now() override { return now_; }
  void Advance(absl::Duration duration) { now_ += duration; }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
};

// An EventWriter's other end.
class EventPipe {
 public:
  EventPipe() {
    std::array<int, 2> ends;
    EXPECT_EQ(pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), 0);
    read_ = FileDescriptor(ends[0]);
    write_ = FileDescriptor(ends[1]);
  }
  FileDescriptor TakeWriteEnd() { return std::move(write_); }
  void CloseReadEnd() { read_ = FileDescriptor(); }

  std::vector<Json> Read() {
    std::array<char, 65536> buffer;
    const ssize_t size = read(read_.get(), buffer.data(), buffer.size());
    std::vector<Json> events;
    if (size <= 0) return events;
    std::string text(buffer.data(), size);
    EXPECT_EQ(text.back(), '\n');
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = text.find('\n', begin);
      events.push_back(Json::parse(text.substr(begin, end - begin)));
      begin = end + 1;
    }
    return events;
  }

 private:
  FileDescriptor read_;
  FileDescriptor write_;
};

TEST(CancellationTest, InterruptsWhatRegisteredBeforeAndAfter) {
  Cancellation cancellation;
  EXPECT_OK(cancellation.Check());
  int interrupted = 0;
  {
    const Cancellation::Scope over(cancellation, [&] { interrupted += 100; });
  }
  {
    const Cancellation::Scope scope(cancellation, [&] { ++interrupted; });
    EXPECT_EQ(interrupted, 0);
    cancellation.Request();
    EXPECT_EQ(interrupted, 1);
  }
  const Cancellation::Scope late(cancellation, [&] { ++interrupted; });
  EXPECT_EQ(interrupted, 2);
  EXPECT_TRUE(cancellation.requested());
  EXPECT_THAT(cancellation.Check(), StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
}

TEST(ErrorsTest, Reasons) {
  EXPECT_EQ(ReasonOf(absl::InternalError("x")), "INTERNAL");
  EXPECT_EQ(ReasonOf(absl::CancelledError("x")), "CANCELLED");
  EXPECT_EQ(ReasonOf(absl::AbortedError("x")), "DIVERGED");
  EXPECT_EQ(ReasonOf(absl::ResourceExhaustedError("x")), "OUT_OF_MEMORY");
  EXPECT_EQ(ReasonOf(absl::ErrnoToStatus(ENOSPC, "file")), "OUT_OF_DISK");
  EXPECT_EQ(ReasonOf(WithReason(absl::DataLossError("x"), "CHECKPOINT_DAMAGED")),
            "CHECKPOINT_DAMAGED");
  EXPECT_EQ(ReasonOf(WithReason(WithReason(absl::NotFoundError("x"), "FIRST"), "SECOND")), "FIRST");
  EXPECT_EQ(ReasonOf(WithReason(absl::ErrnoToStatus(ENOSPC, "file"), "X")), "OUT_OF_DISK");
  EXPECT_OK(WithReason(absl::OkStatus(), "X"));
}

TEST(EventWriterTest, WritesOneObjectALine) {
  EventPipe pipe;
  EventWriter events(pipe.TakeWriteEnd(), [] { FAIL(); });
  events.Device({.name = "cpu", .detail = "a\xff\"b", .memory_bytes = 7}, {80.5, 0});
  events.Progress(Stage::kBlockAp, 3, 30, 0.5, absl::Seconds(2));
  events.Progress(Stage::kE2eQp, 1, 2, std::nan(""), std::nullopt);
  events.Log("line\nbreak");
  events.Result("id", "/dir", Json::object());
  events.Error(WithReason(absl::NotFoundError("no \xfe file"), "CHECKPOINT_NOT_FOUND"));
  const std::vector<Json> read = pipe.Read();
  ASSERT_EQ(read.size(), 6u);
  EXPECT_EQ(read[0], (Json{{"event", "device"},
                           {"device", "cpu"},
                           {"name", "a?\"b"},
                           {"memory_bytes", 7},
                           {"gflops", 80.5},
                           {"bfloat16_gflops", 0.0}}));
  EXPECT_EQ(read[1], (Json{{"event", "progress"},
                           {"stage", "BLOCK_AP"},
                           {"completed", 3},
                           {"total", 30},
                           {"loss", 0.5},
                           {"remaining_seconds", 2.0}}));
  EXPECT_EQ(read[2],
            (Json{{"event", "progress"}, {"stage", "E2E_QP"}, {"completed", 1}, {"total", 2}}));
  EXPECT_EQ(read[3], (Json{{"event", "log"}, {"message", "line\nbreak"}}));
  EXPECT_EQ(read[4]["artifact"], "id");
  EXPECT_EQ(read[5], (Json{{"event", "error"},
                           {"code", 5},
                           {"reason", "CHECKPOINT_NOT_FOUND"},
                           {"message", "no ? file"}}));
}

TEST(EventWriterTest, AReaderThatIsGoneStopsTheRunOnce) {
  signal(SIGPIPE, SIG_IGN);
  EventPipe pipe;
  int broken = 0;
  EventWriter events(pipe.TakeWriteEnd(), [&] { ++broken; });
  pipe.CloseReadEnd();
  events.Log("a");
  events.Log("b");
  EXPECT_EQ(broken, 1);
}

TEST(ProgressTest, EstimatesFromPlanThenFromPace) {
  FakeClock clock;
  EventPipe pipe;
  EventWriter events(pipe.TakeWriteEnd(), [] {});
  ProgressReporter progress(clock, events);
  progress.Report(Stage::kLoading, 0, 1);
  EXPECT_FALSE(pipe.Read().at(0).contains("remaining_seconds"));  // no plan yet

  progress.SetPlan({{.stage = Stage::kLoading, .duration = absl::Seconds(1)},
                    {.stage = Stage::kBlockAp, .duration = absl::Seconds(100)},
                    {.stage = Stage::kE2eQp, .duration = absl::Seconds(50)}});
  progress.Report(Stage::kLoading, 1, 1);
  EXPECT_EQ(progress.Remaining(), absl::Seconds(150));
  progress.Report(Stage::kBlockAp, 0, 10);
  EXPECT_EQ(progress.Remaining(), absl::Seconds(150));
  // Twice as slow as planned.
  clock.Advance(absl::Seconds(20));
  progress.Report(Stage::kBlockAp, 1, 10, 0.25);
  EXPECT_EQ(progress.Remaining(), absl::Seconds(180 + 50));
  clock.Advance(absl::Seconds(180));
  progress.Report(Stage::kBlockAp, 10, 10);
  progress.Report(Stage::kE2eQp, 0, 5);
  // Within a stage without a unit done, its plan; the pace counts for later stages only.
  EXPECT_EQ(progress.Remaining(), absl::Seconds(50));
  for (const Json& event : pipe.Read()) EXPECT_TRUE(event.contains("remaining_seconds"));
}

TEST(ProgressTest, AStageThatGoesOnCountsItsOwnUnitsOnly) {
  FakeClock clock;
  EventPipe pipe;
  EventWriter events(pipe.TakeWriteEnd(), [] {});
  ProgressReporter progress(clock, events);
  progress.SetPlan({{.stage = Stage::kBlockAp, .duration = absl::Seconds(100)}});
  progress.Report(Stage::kBlockAp, 8, 10);
  EXPECT_EQ(progress.Remaining(), absl::Seconds(20));
  clock.Advance(absl::Seconds(30));
  progress.Report(Stage::kBlockAp, 9, 10);
  EXPECT_EQ(progress.Remaining(), absl::Seconds(30));
}

TEST(ProgressTest, TokensAreReportedNowAndThen) {
  FakeClock clock;
  EventPipe pipe;
  EventWriter events(pipe.TakeWriteEnd(), [] {});
  ProgressReporter progress(clock, events);
  for (int i = 0; i <= 100; ++i) {
    progress.Report(Stage::kCalibrating, i, 100);
    clock.Advance(absl::Milliseconds(10));
  }
  const std::vector<Json> read = pipe.Read();
  EXPECT_EQ(read.size(), 5u);  // at 0, 25, 50, 75 and 100
  EXPECT_EQ(read.back()["completed"], 100);
}

TEST(ReportToJsonTest, IsProto3Json) {
  EvaluationResults results;
  results.rows = {{.model = "rtn",
                   .dataset = "sampled",
                   .perplexity = INFINITY,
                   .kl_divergence = 0.5,
                   .top1_agreement = 0.25,
                   .token_count = int64_t{1} << 40}};
  results.zero_shot_rows = {{.model = "artifact",
                             .task = "piqa",
                             .num_items = 1,
                             .accuracy = 1,
                             .accuracy_error = NAN,
                             .difference = 0.5,
                             .difference_error = 0.25}};
  const Json json = ReportToJson(results, 12, 3);
  EXPECT_EQ(json, Json::parse(R"({"rows":[{"model":"rtn","dataset":"sampled",)"
                              R"("perplexity":"Infinity","klDivergence":0.5,"top1Agreement":0.25,)"
                              R"("tokenCount":"1099511627776"}],"zeroShotRows":[)"
                              R"({"model":"artifact","task":"piqa","itemCount":"1","accuracy":1.0,)"
                              R"("accuracyError":"NaN","difference":0.5,"differenceError":0.25}],)"
                              R"("sourceSizeBytes":"12",)"
                              R"("artifactSizeBytes":"3"})"));
}

}  // namespace
}  // namespace quern

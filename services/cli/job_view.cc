#include "services/cli/job_view.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <vector>

#include "core/base/status_macros.h"
#include "services/cli/format.h"

namespace quern::cli {
namespace {

namespace quantization_pb = quantization::v1;

constexpr int kBarWidth = 24;
// A stream may break this many times in a row (a restart of quern-jobs) before watching gives up.
constexpr int kMaxReconnects = 20;
constexpr absl::Duration kReconnectLimit = absl::Seconds(30);
// Without a terminal, a line each time this share of a stage is done.
constexpr double kLineStep = 0.1;

const char* UnitOf(quantization_pb::Progress::Stage stage) {
  if (stage == quantization_pb::Progress::BLOCK_AP) return "block";
  if (stage == quantization_pb::Progress::E2E_QP) return "step";
  return "";
}

const char* ModelLabel(const std::string& model, bool on_base) {
  if (on_base && model == "result") return "tuned";
  static const auto& labels = *new std::map<std::string, const char*>{
      {"source", "source"}, {"base", "base"}, {"rtn", "round to nearest"}, {"result", "Quern"}};
  const auto it = labels.find(model);
  return it == labels.end() ? model.c_str() : it->second;
}

// The line of a running job. On a terminal it is rewritten in place.
class Screen {
 public:
  explicit Screen(bool terminal) : terminal_(terminal), start_(absl::Now()) {}

  void Show(const quantization_pb::Progress& progress) {
    const std::string text = DescribeProgress(progress);
    const double fraction =
        progress.total_count() > 0
            ? static_cast<double>(progress.completed_count()) / progress.total_count()
            : 0;
    const std::string elapsed = FormatElapsed(absl::Now() - start_);
    if (terminal_) {
      Rewrite(absl::StrCat(FormatBar(fraction, kBarWidth), "  ", text, "  ", elapsed, " elapsed"));
    } else if (progress.stage() != last_stage_ || fraction - last_fraction_ >= kLineStep ||
               (fraction == 1 && last_fraction_ < 1)) {
      std::cout << elapsed << "  " << text << std::endl;
      last_stage_ = progress.stage();
      last_fraction_ = fraction;
    }
  }

  void Say(const std::string& text) {
    if (terminal_) Rewrite("");
    std::cout << text << std::endl;
  }

  void Clear() {
    if (terminal_) Rewrite("");
  }

 private:
  static void Rewrite(const std::string& text) {
    const int columns = TerminalColumns();
    // A line that wraps could not be rewritten.
    std::cout << "\r\x1b[2K" << (columns > 0 ? TruncateToWidth(text, columns - 1) : text)
              << std::flush;
  }
  const bool terminal_;
  const absl::Time start_;
  quantization_pb::Progress::Stage last_stage_ = quantization_pb::Progress::STAGE_UNSPECIFIED;
  double last_fraction_ = 0;
};

absl::Status EndOf(const quantization_pb::QuantizationJob& job) {
  if (job.state() == quantization_pb::QuantizationJob::SUCCEEDED) return absl::OkStatus();
  if (job.state() == quantization_pb::QuantizationJob::CANCELLED) {
    return absl::CancelledError(absl::StrCat(job.name(), " was cancelled"));
  }
  return absl::Status(
      static_cast<absl::StatusCode>(job.error().code()),
      absl::StrCat(job.name(), " failed: ", job.error().reason(), ": ", job.error().message()));
}

bool IsTerminal(quantization_pb::QuantizationJob::State state) {
  return state == quantization_pb::QuantizationJob::SUCCEEDED ||
         state == quantization_pb::QuantizationJob::FAILED ||
         state == quantization_pb::QuantizationJob::CANCELLED;
}

void PrintEnd(const quantization_pb::QuantizationJob& job) {
  if (job.state() != quantization_pb::QuantizationJob::SUCCEEDED) return;
  if (job.has_evaluation()) std::cout << "\n" << DescribeEvaluation(job.evaluation());
  if (!job.artifact().empty()) std::cout << "artifact  " << job.artifact() << std::endl;
}

}  // namespace

absl::Time ToTime(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) + absl::Nanoseconds(timestamp.nanos());
}

std::string DescribeProgress(const quantization_pb::Progress& progress) {
  std::string text = quantization_pb::Progress::Stage_Name(progress.stage());
  const std::string unit = UnitOf(progress.stage());
  // "0 of 1" of nothing in particular says less than the stage alone.
  if (progress.total_count() > (unit.empty() ? 1 : 0)) {
    absl::StrAppend(&text, "  ", unit, unit.empty() ? "" : " ",
                    FormatCount(progress.completed_count()), " of ",
                    FormatCount(progress.total_count()));
  }
  if (progress.has_loss()) absl::StrAppend(&text, absl::StrFormat("  loss %.4g", progress.loss()));
  if (progress.has_remaining()) {
    absl::StrAppend(&text, "  ", FormatElapsed(absl::Seconds(progress.remaining().seconds())),
                    " left");
  }
  return text;
}

std::string DescribeEvaluation(const quantization_pb::EvaluationReport& report) {
  std::string first;  // what the others are compared with
  if (report.rows_size() > 0) {
    first = report.rows(0).model();
  } else if (report.zero_shot_rows_size() > 0) {
    first = report.zero_shot_rows(0).model();
  }
  const bool on_base = first == "base";
  std::string text;
  if (report.rows_size() > 0) {
    std::vector<std::vector<std::string>> rows = {{"text", "model", "perplexity",
                                                   on_base ? "KL to base" : "KL to source",
                                                   "same top-1", "tokens"}};
    std::string previous;
    for (const auto& row : report.rows()) {
      const bool compared = row.model() != first;
      rows.push_back({row.dataset() == previous ? "" : row.dataset(),
                      ModelLabel(row.model(), on_base), absl::StrFormat("%.2f", row.perplexity()),
                      compared ? absl::StrFormat("%.4f", row.kl_divergence()) : "",
                      compared ? absl::StrFormat("%.1f %%", 100 * row.top1_agreement()) : "",
                      FormatCount(row.token_count())});
      previous = row.dataset();
    }
    absl::StrAppend(&text, FormatTable(rows, {false, false, true, true, true, true}));
  }
  if (report.zero_shot_rows_size() > 0) {
    std::vector<std::vector<std::string>> rows = {
        {"task", "model", "items", "acc, %", "acc_norm, %",
         absl::StrCat("acc - ", on_base ? "base" : "source", "'s")}};
    for (const auto& row : report.zero_shot_rows()) {
      rows.push_back(
          {row.task(), ModelLabel(row.model(), on_base), FormatCount(row.item_count()),
           FormatShare(row.accuracy(), row.accuracy_error()),
           row.has_accuracy_norm() ? FormatShare(row.accuracy_norm(), row.accuracy_norm_error())
                                   : "",
           row.model() == first ? "" : FormatShare(row.difference(), row.difference_error())});
    }
    absl::StrAppend(&text, FormatTable(rows, {false, false, true, true, true, true}));
  }
  absl::StrAppend(&text, "size  ");
  if (first == "artifact") {
    absl::StrAppend(&text, FormatBytes(report.artifact_size_bytes()), "\n");
  } else {
    absl::StrAppend(
        &text, FormatBytes(report.source_size_bytes()), on_base ? " of the base, " : " before, ",
        FormatBytes(report.artifact_size_bytes()), on_base ? " of the scale delta\n" : " after\n");
  }
  return text;
}

absl::Status WatchJob(const std::string& name, const Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  auto stub = quantization_pb::QuantizationService::NewStub(channel);
  Screen screen(context.terminal() && !context.json());
  quantization_pb::WatchQuantizationJobRequest request;
  request.set_name(name);
  quantization_pb::QuantizationJob job;
  for (int broken = 0; broken <= kMaxReconnects; ++broken) {
    if (broken > 0 &&
        !channel->WaitForConnected(absl::ToChronoTime(absl::Now() + kReconnectLimit))) {
      break;
    }
    grpc::ClientContext call;
    interrupt.Attach(&call);
    auto stream = stub->WatchQuantizationJob(&call, request);
    quantization_pb::JobEvent event;
    while (stream->Read(&event)) {
      broken = 0;
      request.set_after_sequence(std::max(request.after_sequence(), event.sequence()));
      if (context.json()) {
        RETURN_IF_ERROR(PrintJson(event));
      } else if (event.has_progress()) {
        screen.Show(event.progress());
      } else if (event.event_case() == quantization_pb::JobEvent::kLog) {
        screen.Say(absl::StrCat("  ", event.log()));
      }
      if (event.has_job()) {
        if (!context.json() && event.job().state() != job.state()) {
          screen.Say(absl::StrCat(
              name, "  ", quantization_pb::QuantizationJob::State_Name(event.job().state())));
        }
        job = event.job();
      }
    }
    const absl::Status status = CallStatus(stream->Finish());
    interrupt.Release();
    screen.Clear();
    if (IsTerminal(job.state())) {
      if (!context.json()) PrintEnd(job);
      return EndOf(job);
    }
    if (interrupt.interrupted()) {
      return absl::CancelledError(
          absl::StrCat("no longer watching; the job goes on. Follow it with `quern jobs watch ",
                       name, "`, stop it with `quern jobs cancel ", name, "`"));
    }
    if (!absl::IsUnavailable(status)) {
      return status.ok()
                 ? absl::InternalError(absl::StrCat(name, ": the watch ended before the job"))
                 : status;
    }
  }
  return absl::UnavailableError(absl::StrCat(name, ": quern-jobs cannot be reached"));
}

}  // namespace quern::cli

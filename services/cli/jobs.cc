// `quern jobs`: list, get, watch, cancel, delete.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/job_view.h"

namespace quern::cli {
namespace {

namespace quantization_pb = quantization::v1;

struct JobsOptions {
  std::string job;
  int limit = 20;
  std::vector<std::string> states;
};

std::string Describe(const quantization_pb::QuantizationJob& job) {
  if (job.has_tune()) {
    return absl::StrCat("tune ", job.tune().base().substr(sizeof("artifacts/") - 1, 12), " on ",
                        job.tune().data().path());
  }
  if (job.has_evaluate()) {
    return absl::StrCat("evaluate ",
                        job.evaluate().artifact().substr(sizeof("artifacts/") - 1, 12));
  }
  const auto& task = job.quantize();
  return absl::StrCat(task.checkpoint().path(), " w", task.format().bits(), "g",
                      task.format().group_size());
}

std::string DescribeSettings(const quantization_pb::QuantizationJob& job) {
  if (job.has_tune()) {
    const auto& settings = job.tune().resolved();
    return absl::StrCat(", at most ", settings.sample_count(), " examples, ",
                        settings.epoch_count(), " epochs, rate ", settings.learning_rate());
  }
  if (job.has_evaluate()) {
    return absl::StrCat(", ", job.evaluate().texts_size(), " texts, ",
                        job.evaluate().zero_shot_size(), " zero-shot tasks");
  }
  return absl::StrCat(", ", quantization_pb::QuantizeTask::Method_Name(job.quantize().method()),
                      ", preset ",
                      quantization_pb::QuantizeTask::Preset_Name(job.quantize().preset()));
}

absl::Status ListJobs(const JobsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  auto stub = quantization_pb::QuantizationService::NewStub(channel);
  quantization_pb::ListQuantizationJobsRequest request;
  request.set_page_size(options.limit);
  for (const std::string& name : options.states) {
    quantization_pb::QuantizationJob::State state;
    if (!quantization_pb::QuantizationJob::State_Parse(name, &state)) {
      return absl::InvalidArgumentError(absl::StrCat("--state: no state \"", name, "\""));
    }
    request.add_states(state);
  }
  grpc::ClientContext call;
  quantization_pb::ListQuantizationJobsResponse response;
  RETURN_IF_ERROR(CallStatus(stub->ListQuantizationJobs(&call, request, &response)));
  if (context.json()) return PrintJson(response);
  std::vector<std::vector<std::string>> rows = {
      {"JOB", "STATE", "TASK", "CREATED", "TOOK", "RESULT"}};
  for (const auto& job : response.quantization_jobs()) {
    const absl::Time start = ToTime(job.start_time());
    const absl::Time end = job.has_end_time() ? ToTime(job.end_time()) : absl::Now();
    rows.push_back({std::string(absl::StripPrefix(job.name(), "quantizationJobs/")),
                    quantization_pb::QuantizationJob::State_Name(job.state()), Describe(job),
                    FormatLocalTime(ToTime(job.create_time())),
                    job.has_start_time() ? FormatElapsed(end - start) : "-",
                    job.artifact().empty()
                        ? job.error().reason()
                        : job.artifact().substr(0, sizeof("artifacts/") - 1 + 12)});
  }
  std::cout << FormatTable(rows, {false, false, false, false, true, false});
  if (!response.next_page_token().empty()) std::cout << "older jobs: --limit N\n";
  return absl::OkStatus();
}

absl::Status GetJob(const JobsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  auto stub = quantization_pb::QuantizationService::NewStub(channel);
  quantization_pb::GetQuantizationJobRequest request;
  request.set_name(ResourceName("quantizationJobs", options.job));
  grpc::ClientContext call;
  quantization_pb::QuantizationJob job;
  RETURN_IF_ERROR(CallStatus(stub->GetQuantizationJob(&call, request, &job)));
  if (context.json()) return PrintJson(job);
  std::cout << "job       " << job.name() << "\n"
            << "state     " << quantization_pb::QuantizationJob::State_Name(job.state()) << "\n"
            << "task      " << Describe(job) << DescribeSettings(job) << "\n"
            << "created   " << FormatLocalTime(ToTime(job.create_time())) << "\n"
            << "started   " << FormatLocalTime(ToTime(job.start_time())) << "\n"
            << "ended     " << FormatLocalTime(ToTime(job.end_time())) << "\n"
            << "attempts  " << job.attempt_count() << "\n";
  if (job.state() == quantization_pb::QuantizationJob::RUNNING) {
    std::cout << "progress  " << DescribeProgress(job.progress()) << "\n";
  }
  if (job.has_error()) {
    std::cout << "error     " << job.error().reason() << ": " << job.error().message() << "\n";
  }
  if (!job.artifact().empty()) std::cout << "artifact  " << job.artifact() << "\n";
  if (job.has_evaluation()) std::cout << "\n" << DescribeEvaluation(job.evaluation());
  return absl::OkStatus();
}

absl::Status Cancel(const JobsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  auto stub = quantization_pb::QuantizationService::NewStub(channel);
  quantization_pb::CancelQuantizationJobRequest request;
  request.set_name(ResourceName("quantizationJobs", options.job));
  grpc::ClientContext call;
  quantization_pb::QuantizationJob job;
  RETURN_IF_ERROR(CallStatus(stub->CancelQuantizationJob(&call, request, &job)));
  if (context.json()) return PrintJson(job);
  std::cout << job.name() << "  " << quantization_pb::QuantizationJob::State_Name(job.state())
            << "\n";
  return absl::OkStatus();
}

absl::Status DeleteJob(const JobsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  auto stub = quantization_pb::QuantizationService::NewStub(channel);
  quantization_pb::DeleteQuantizationJobRequest request;
  request.set_name(ResourceName("quantizationJobs", options.job));
  grpc::ClientContext call;
  google::protobuf::Empty empty;
  RETURN_IF_ERROR(CallStatus(stub->DeleteQuantizationJob(&call, request, &empty)));
  if (context.json()) return PrintJson(empty);
  std::cout << request.name() << "  deleted\n";
  return absl::OkStatus();
}

}  // namespace

void AddJobs(CLI::App& app, Command& command) {
  auto options = std::make_shared<JobsOptions>();
  CLI::App* jobs = app.add_subcommand("jobs", "Quantization jobs");
  jobs->require_subcommand(1);
  jobs->fallthrough();

  CLI::App* list = jobs->add_subcommand("list", "Newest first");
  list->add_option("--limit", options->limit, "at most this many")->check(CLI::Range(1, 1000));
  list->add_option("--state", options->states, "only these states, e.g. RUNNING");
  list->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return ListJobs(*options, context); };
  });

  const auto add = [&](const char* name, const char* help, auto function) {
    CLI::App* sub = jobs->add_subcommand(name, help);
    sub->add_option("job", options->job, "name or id of the job")->required();
    sub->callback([options, &command, function] {
      command = [options, function](Context& context, Interrupt& interrupt) {
        return function(*options, context, interrupt);
      };
    });
  };
  add("get", "One job, with its evaluation",
      [](const JobsOptions& o, Context& context, Interrupt&) { return GetJob(o, context); });
  add("cancel", "Ask a job to stop",
      [](const JobsOptions& o, Context& context, Interrupt&) { return Cancel(o, context); });
  add("delete", "Forget a job that has ended; its artifact stays",
      [](const JobsOptions& o, Context& context, Interrupt&) { return DeleteJob(o, context); });
  add("watch", "Follow a job to its end",
      [](const JobsOptions& o, Context& context, Interrupt& interrupt) {
        interrupt.Watch();
        return WatchJob(ResourceName("quantizationJobs", o.job), context, interrupt);
      });
  AddJobsEvaluate(*jobs, command);
}

}  // namespace quern::cli

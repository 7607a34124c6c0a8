#include "services/cli/submit.h"

#include <absl/strings/str_cat.h>
#include <absl/time/time.h>
#include <grpcpp/grpcpp.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include <iostream>
#include <map>
#include <random>

#include "core/base/status_macros.h"
#include "services/cli/format.h"
#include "services/cli/job_view.h"

namespace quern::cli {
namespace {

namespace quantization_pb = quantization::v1;

// A random UUID (RFC 4122, version 4): makes a retried submit the same job.
std::string NewRequestId() {
  std::random_device random;
  std::string id;
  for (int i = 0; i < 16; ++i) {
    uint32_t byte = random() & 0xff;
    if (i == 6) byte = (byte & 0x0f) | 0x40;
    if (i == 8) byte = (byte & 0x3f) | 0x80;
    if (i == 4 || i == 6 || i == 8 || i == 10) id += '-';
    absl::StrAppend(&id, absl::Hex(byte, absl::kZeroPad2));
  }
  return id;
}

void PrintPlan(const quantization_pb::QuantizationJob& job) {
  bool has_gpu = false;
  for (const auto& stage : job.plan().stages()) has_gpu |= stage.device_memory_bytes() > 0;
  std::vector<std::vector<std::string>> rows = {{"STAGE", "TIME", "MEMORY", "DISK"}};
  if (has_gpu) rows[0].push_back("GPU MEMORY");
  absl::Duration total;
  for (const auto& stage : job.plan().stages()) {
    const absl::Duration duration =
        absl::Seconds(stage.duration().seconds()) + absl::Nanoseconds(stage.duration().nanos());
    total += duration;
    rows.push_back({quantization_pb::Progress::Stage_Name(stage.stage()), FormatElapsed(duration),
                    FormatBytes(stage.host_memory_bytes()), FormatBytes(stage.disk_bytes())});
    if (has_gpu) rows.back().push_back(FormatBytes(stage.device_memory_bytes()));
  }
  std::cout << FormatTable(rows, std::vector<bool>{false, true, true, true, true}) << "about "
            << FormatElapsed(total) << " in all, artifact of "
            << FormatBytes(job.plan().artifact_size_bytes()) << std::endl;
}

}  // namespace

void AddSubmitOptions(CLI::App& sub, SubmitOptions& options) {
  sub.add_option("--label", options.labels, "KEY=VALUE kept with the job");
  sub.add_option("--request-id", options.request_id, "UUID that makes a retry the same job");
  CLI::Option* detach = sub.add_flag("--detach", options.detach, "do not wait for the job");
  sub.add_flag("--wait", options.wait, "follow the job to its end (the default)")->excludes(detach);
  sub.add_flag("--validate-only,--dry-run", options.validate_only,
               "check everything and print the plan, without making a job");
}

void AddComputeDtypeOption(CLI::App& command,
                           quantization_pb::QuantizeTask::ComputeDtype& compute_dtype) {
  const std::map<std::string, quantization_pb::QuantizeTask::ComputeDtype> names = {
      {"FLOAT32", quantization_pb::QuantizeTask::FLOAT32},
      {"BFLOAT16", quantization_pb::QuantizeTask::BFLOAT16}};
  command
      .add_option("--compute-dtype", compute_dtype,
                  "FLOAT32 or BFLOAT16: what products are computed in while training; default: "
                  "bfloat16 where the worker's machine has it in hardware")
      ->transform(CLI::CheckedTransformer(names, CLI::ignore_case).description(""))
      ->option_text("NAME");
}

absl::StatusOr<quantization_pb::CreateQuantizationJobRequest> MakeRequest(
    const SubmitOptions& options) {
  quantization_pb::CreateQuantizationJobRequest request;
  request.set_request_id(options.request_id.empty() ? NewRequestId() : options.request_id);
  request.set_validate_only(options.validate_only);
  for (const std::string& label : options.labels) {
    const size_t equals = label.find('=');
    if (equals == std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("--label ", label, ": wanted KEY=VALUE"));
    }
    (*request.mutable_quantization_job()->mutable_labels())[label.substr(0, equals)] =
        label.substr(equals + 1);
  }
  return request;
}

absl::Status SubmitJob(const quantization_pb::CreateQuantizationJobRequest& request,
                       const SubmitOptions& options, Context& context, Interrupt& interrupt,
                       absl::FunctionRef<void(const quantization_pb::QuantizationJob&)> announce) {
  if (!options.detach) interrupt.Watch();
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  auto stub = quantization_pb::QuantizationService::NewStub(channel);
  quantization_pb::QuantizationJob job;
  grpc::ClientContext call;
  interrupt.Attach(&call);
  const grpc::Status created = stub->CreateQuantizationJob(&call, request, &job);
  interrupt.Release();
  RETURN_IF_ERROR(CallStatus(created));
  if (options.validate_only) {
    if (context.json()) return PrintJson(job);
    PrintPlan(job);
    return absl::OkStatus();
  }
  if (!context.json()) announce(job);
  if (options.detach) {
    if (context.json()) return PrintJson(job);
    return absl::OkStatus();
  }
  return WatchJob(job.name(), context, interrupt);
}

}  // namespace quern::cli

#ifndef QUERN_SERVICES_CLI_SUBMIT_H_
#define QUERN_SERVICES_CLI_SUBMIT_H_

// What the commands that make jobs have in common.

#include <absl/functional/function_ref.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "services/cli/context.h"

namespace quern::cli {

struct SubmitOptions {
  std::vector<std::string> labels;
  std::string request_id;
  bool detach = false;
  bool wait = false;  // the default, said aloud
  bool validate_only = false;
};

void AddSubmitOptions(CLI::App& command, SubmitOptions& options);

// --compute-dtype, of the commands that train.
void AddComputeDtypeOption(CLI::App& command,
                           quantization::v1::QuantizeTask::ComputeDtype& compute_dtype);

// A request with everything but the task. INVALID_ARGUMENT naming the flag.
absl::StatusOr<quantization::v1::CreateQuantizationJobRequest> MakeRequest(
    const SubmitOptions& options);

// Makes the job and follows it to its end, or prints its plan, as the options say. `announce`
// prints what was made, for people.
absl::Status SubmitJob(const quantization::v1::CreateQuantizationJobRequest& request,
                       const SubmitOptions& options, Context& context, Interrupt& interrupt,
                       absl::FunctionRef<void(const quantization::v1::QuantizationJob&)> announce);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_SUBMIT_H_

#ifndef QUERN_SERVICES_CLI_JOB_VIEW_H_
#define QUERN_SERVICES_CLI_JOB_VIEW_H_

// How a job looks while it runs and when it is over.

#include <absl/status/status.h>
#include <absl/time/time.h>
#include <google/protobuf/timestamp.pb.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <string>

#include "services/cli/context.h"

namespace quern::cli {

absl::Time ToTime(const google::protobuf::Timestamp& timestamp);

// "BLOCK_AP  block 12 of 30  loss 0.0123  2:11 left".
std::string DescribeProgress(const quantization::v1::Progress& progress);

// Tables: for each text and zero-shot task, the models that were measured; then bytes before and
// after.
std::string DescribeEvaluation(const quantization::v1::EvaluationReport& report);

// Follows the job to its end: one line that is rewritten on a terminal, a line a change otherwise,
// JSON events with --json. Reconnects when the stream breaks. OK when it SUCCEEDED; the job's error
// when it failed; CANCELLED when it was cancelled, or when Ctrl-C detached from it (the job goes
// on, and the message says how to follow or cancel it).
absl::Status WatchJob(const std::string& name, const Context& context, Interrupt& interrupt);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_JOB_VIEW_H_

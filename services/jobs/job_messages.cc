#include "services/jobs/job_messages.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>

#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "services/jobs/request_fields.h"

namespace quern {
namespace {

using quantization::v1::JobEvent;
using quantization::v1::Progress;
using quantization::v1::QuantizationJob;

// Same numbers, persisted on one side and on the wire on the other.
static_assert(static_cast<int>(JobState::kQueued) == QuantizationJob::QUEUED);
static_assert(static_cast<int>(JobState::kRunning) == QuantizationJob::RUNNING);
static_assert(static_cast<int>(JobState::kCancelling) == QuantizationJob::CANCELLING);
static_assert(static_cast<int>(JobState::kSucceeded) == QuantizationJob::SUCCEEDED);
static_assert(static_cast<int>(JobState::kFailed) == QuantizationJob::FAILED);
static_assert(static_cast<int>(JobState::kCancelled) == QuantizationJob::CANCELLED);

absl::Status Damaged(const JobRecord& record, absl::string_view what) {
  return absl::DataLossError(
      absl::StrCat("job '", record.id, "': its stored ", what, " cannot be read"));
}

}  // namespace

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t nanos = absl::ToUnixNanos(time);
  timestamp.set_seconds(nanos / 1'000'000'000);
  timestamp.set_nanos(static_cast<int>(nanos % 1'000'000'000));
  return timestamp;
}

google::protobuf::Duration ToProtoDuration(absl::Duration duration) {
  google::protobuf::Duration result;
  const int64_t nanos = absl::ToInt64Nanoseconds(duration);
  result.set_seconds(nanos / 1'000'000'000);
  result.set_nanos(static_cast<int>(nanos % 1'000'000'000));
  return result;
}

std::string SerializeCanonically(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    CHECK(message.SerializeToCodedStream(&coded));
  }
  return bytes;
}

absl::StatusOr<QuantizationJob> JobFromRecord(const JobRecord& record) {
  QuantizationJob job;
  if (!job.ParseFromString(record.spec)) return Damaged(record, "task");
  job.set_name(JobName(record.id));
  job.set_state(static_cast<QuantizationJob::State>(record.state));
  if (!record.progress.empty() && !job.mutable_progress()->ParseFromString(record.progress)) {
    return Damaged(record, "progress");
  }
  if (!record.error.empty() && !job.mutable_error()->ParseFromString(record.error)) {
    return Damaged(record, "error");
  }
  if (!record.artifact.empty()) job.set_artifact(ArtifactName(record.artifact));
  if (!record.evaluation.empty() && !job.mutable_evaluation()->ParseFromString(record.evaluation)) {
    return Damaged(record, "evaluation");
  }
  *job.mutable_create_time() = ToTimestamp(record.create_time);
  if (record.start_time != absl::InfinitePast()) {
    *job.mutable_start_time() = ToTimestamp(record.start_time);
  }
  if (record.end_time != absl::InfinitePast()) {
    *job.mutable_end_time() = ToTimestamp(record.end_time);
  }
  job.set_attempt_count(record.attempt_count);
  return job;
}

absl::StatusOr<QuantizationJob> JobInState(const JobRecord& record, JobState state) {
  JobRecord then = record;
  then.state = state;
  if (!IsTerminal(state)) {
    then.error.clear();
    then.artifact.clear();
    then.evaluation.clear();
    then.end_time = absl::InfinitePast();
  }
  return JobFromRecord(then);
}

absl::StatusOr<JobState> StateOfEvent(const JobEventRecord& event) {
  int number = 0;
  if (!absl::SimpleAtoi(event.payload, &number) || number < 1 || number > 6) {
    return absl::DataLossError(
        absl::StrCat("event ", event.sequence, ": its stored state cannot be read"));
  }
  return static_cast<JobState>(number);
}

absl::StatusOr<JobEvent> EventFromRecord(const JobRecord& record, const JobEventRecord& event) {
  JobEvent message;
  message.set_sequence(event.sequence);
  *message.mutable_time() = ToTimestamp(event.time);
  switch (event.kind) {
    case JobEventRecord::Kind::kState: {
      ASSIGN_OR_RETURN(const JobState state, StateOfEvent(event));
      ASSIGN_OR_RETURN(*message.mutable_job(), JobInState(record, state));
      return message;
    }
    case JobEventRecord::Kind::kProgress:
      if (!message.mutable_progress()->ParseFromString(event.payload)) {
        return Damaged(record, "progress");
      }
      return message;
    case JobEventRecord::Kind::kLog:
      message.set_log(event.payload);
      return message;
  }
  return Damaged(record, "event");
}

int64_t ProgressMark(const Progress& progress) {
  // Stages before BLOCK_AP are repeated by each attempt and prove nothing.
  if (progress.stage() < Progress::BLOCK_AP) return 0;
  constexpr int64_t kUnitsOfStage = int64_t{1} << 40;
  return progress.stage() * kUnitsOfStage +
         std::clamp<int64_t>(progress.completed_count(), 0, kUnitsOfStage - 1);
}

}  // namespace quern

#ifndef QUERN_SERVICES_JOBS_JOB_MESSAGES_H_
#define QUERN_SERVICES_JOBS_JOB_MESSAGES_H_

// Between the records of the store and the messages of the API. The store keeps messages as opaque
// bytes: spec = QuantizationJob (task, labels, plan), progress = Progress, error = JobError,
// evaluation = EvaluationReport, artifact record = Artifact.

#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/message.h>
#include <google/protobuf/timestamp.pb.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <string>

#include "core/store/job_store.h"

namespace quern {

google::protobuf::Timestamp ToTimestamp(absl::Time time);
google::protobuf::Duration ToProtoDuration(absl::Duration duration);

// Equal messages give equal bytes, maps included.
std::string SerializeCanonically(const google::protobuf::Message& message);

// DATA_LOSS when the store's bytes are no such message.
absl::StatusOr<quantization::v1::QuantizationJob> JobFromRecord(const JobRecord& record);

// The job as it was when it entered `state`: what came later is left out.
absl::StatusOr<quantization::v1::QuantizationJob> JobInState(const JobRecord& record,
                                                             JobState state);

// `record` is the job now.
absl::StatusOr<quantization::v1::JobEvent> EventFromRecord(const JobRecord& record,
                                                           const JobEventRecord& event);

// The state that a kState event says. DATA_LOSS when it says none.
absl::StatusOr<JobState> StateOfEvent(const JobEventRecord& event);

// Grows with work that a later attempt does not repeat: stages from BLOCK_AP on and their units.
int64_t ProgressMark(const quantization::v1::Progress& progress);

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_JOB_MESSAGES_H_

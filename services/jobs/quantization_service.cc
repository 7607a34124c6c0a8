#include "services/jobs/quantization_service.h"

#include <absl/strings/str_cat.h>

#include <optional>
#include <utility>
#include <vector>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "services/common/unary.h"
#include "services/jobs/job_messages.h"
#include "services/jobs/request_fields.h"
#include "services/jobs/watch_reactor.h"

namespace quern {

using quantization::v1::CancelQuantizationJobRequest;
using quantization::v1::CreateQuantizationJobRequest;
using quantization::v1::DeleteQuantizationJobRequest;
using quantization::v1::GetQuantizationJobRequest;
using quantization::v1::JobEvent;
using quantization::v1::ListQuantizationJobsRequest;
using quantization::v1::ListQuantizationJobsResponse;
using quantization::v1::QuantizationJob;
using quantization::v1::WatchQuantizationJobRequest;

absl::Status QuantizationServiceImpl::Create(const CreateQuantizationJobRequest& request,
                                             QuantizationJob& response) {
  if (!request.request_id().empty()) {
    RETURN_IF_ERROR(CheckIdentifier("request_id", request.request_id(), 64));
  }
  if (!request.has_quantization_job()) {
    return absl::InvalidArgumentError("quantization_job: is required");
  }
  ASSIGN_OR_RETURN(QuantizationJob job, TaskPlanner::Normalize(request.quantization_job()));
  const std::string digest = Sha256Hex(SerializeCanonically(job));
  // Before the files are looked at: they may have moved since the first call.
  ASSIGN_OR_RETURN(const std::optional<JobRecord> known,
                   board_.FindRequest(request.request_id(), digest));
  if (known.has_value()) {
    ASSIGN_OR_RETURN(response, JobFromRecord(*known));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(job, planner_.Plan(std::move(job)));
  if (request.validate_only()) {
    response = std::move(job);
    response.set_state(QuantizationJob::QUEUED);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const JobRecord record,
                   board_.Create(SerializeCanonically(job), request.request_id(), digest));
  ASSIGN_OR_RETURN(response, JobFromRecord(record));
  return absl::OkStatus();
}

absl::Status QuantizationServiceImpl::List(const ListQuantizationJobsRequest& request,
                                           ListQuantizationJobsResponse& response) {
  ASSIGN_OR_RETURN(const int page_size, CheckPageSize(request.page_size()));
  RETURN_IF_ERROR(CheckText("page_token", request.page_token(), 128));
  std::vector<JobState> states;
  for (int state : request.states()) {
    if (state < 1 || state > 6) {
      return absl::InvalidArgumentError(
          absl::StrCat("states: found ", state, ", wanted states from QUEUED to CANCELLED"));
    }
    states.push_back(static_cast<JobState>(state));
  }
  ASSIGN_OR_RETURN(JobStore::Page page,
                   board_.store().List(page_size, request.page_token(), states));
  for (const JobRecord& record : page.jobs) {
    ASSIGN_OR_RETURN(*response.add_quantization_jobs(), JobFromRecord(record));
  }
  response.set_next_page_token(std::move(page.next_page_token));
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::CreateQuantizationJob(
    grpc::CallbackServerContext* context, const CreateQuantizationJobRequest* request,
    QuantizationJob* response) {
  return RunUnary(executor_, context,
                  [this, request, response] { return Create(*request, *response); });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::GetQuantizationJob(
    grpc::CallbackServerContext* context, const GetQuantizationJobRequest* request,
    QuantizationJob* response) {
  return RunUnary(executor_, context, [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string id, ParseJobName("name", request->name()));
    ASSIGN_OR_RETURN(const JobRecord record, board_.store().Get(id));
    ASSIGN_OR_RETURN(*response, JobFromRecord(record));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::ListQuantizationJobs(
    grpc::CallbackServerContext* context, const ListQuantizationJobsRequest* request,
    ListQuantizationJobsResponse* response) {
  return RunUnary(executor_, context,
                  [this, request, response] { return List(*request, *response); });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::CancelQuantizationJob(
    grpc::CallbackServerContext* context, const CancelQuantizationJobRequest* request,
    QuantizationJob* response) {
  return RunUnary(executor_, context, [this, request, response]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string id, ParseJobName("name", request->name()));
    ASSIGN_OR_RETURN(const JobRecord record, board_.Cancel(id));
    ASSIGN_OR_RETURN(*response, JobFromRecord(record));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* QuantizationServiceImpl::DeleteQuantizationJob(
    grpc::CallbackServerContext* context, const DeleteQuantizationJobRequest* request,
    google::protobuf::Empty*) {
  return RunUnary(executor_, context, [this, request]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string id, ParseJobName("name", request->name()));
    return board_.Delete(id);
  });
}

grpc::ServerWriteReactor<JobEvent>* QuantizationServiceImpl::WatchQuantizationJob(
    grpc::CallbackServerContext*, const WatchQuantizationJobRequest* request) {
  return StartWatch(board_, executor_, *request);
}

}  // namespace quern

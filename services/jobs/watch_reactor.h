#ifndef QUERN_SERVICES_JOBS_WATCH_REACTOR_H_
#define QUERN_SERVICES_JOBS_WATCH_REACTOR_H_

#include <grpcpp/grpcpp.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include "services/common/executor.h"
#include "services/jobs/job_board.h"

namespace quern {

// Streams the events of a job: those stored first, then each as it happens, and ends after the
// terminal state. A watch that goes on after a sequence number starts with the job as it was there.
// A reader that falls behind misses progress in between, never a state or a log line. At most 64
// events are held for one reader. The reactor deletes itself; `board` and `executor` must outlive
// the server.
grpc::ServerWriteReactor<quantization::v1::JobEvent>* StartWatch(
    JobBoard& board, Executor& executor,
    const quantization::v1::WatchQuantizationJobRequest& request);

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_WATCH_REACTOR_H_

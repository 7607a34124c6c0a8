#ifndef QUERN_SERVICES_WORKER_CAPABILITIES_H_
#define QUERN_SERVICES_WORKER_CAPABILITIES_H_

#include <quern/worker/v1/worker_service.pb.h>

namespace quern {

// What this process may use: processor and memory. A GPU is known only from the quantizer's report.
// Fields that cannot be read stay empty.
worker::v1::WorkerCapabilities ReadCpuCapabilities();

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_CAPABILITIES_H_

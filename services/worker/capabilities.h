#ifndef QUERN_SERVICES_WORKER_CAPABILITIES_H_
#define QUERN_SERVICES_WORKER_CAPABILITIES_H_

#include <absl/strings/string_view.h>
#include <quern/worker/v1/worker_service.pb.h>

#include <string>

namespace quern {

// What this process may use: processor and memory. A GPU is known only from the quantizer's report.
// Fields that cannot be read stay empty.
worker::v1::WorkerCapabilities ReadCpuCapabilities();

// The first "model name" of /proc/cpuinfo's text; empty when there is none.
std::string ProcessorName(absl::string_view cpuinfo);

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_CAPABILITIES_H_

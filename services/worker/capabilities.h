#ifndef QUERN_SERVICES_WORKER_CAPABILITIES_H_
#define QUERN_SERVICES_WORKER_CAPABILITIES_H_

#include <absl/strings/string_view.h>
#include <quern/worker/v1/worker_service.pb.h>

namespace quern {

// What this machine has: processor and memory, as /proc/cpuinfo and /proc/meminfo tell. A GPU is
// known only from the quantizer's report. Fields that cannot be read stay empty.
worker::v1::WorkerCapabilities ReadCpuCapabilities();

// The same from the text of the two files.
worker::v1::WorkerCapabilities ParseCpuCapabilities(absl::string_view cpuinfo,
                                                    absl::string_view meminfo);

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_CAPABILITIES_H_

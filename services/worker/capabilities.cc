#include "services/worker/capabilities.h"

#include "core/base/machine.h"

namespace quern {

worker::v1::WorkerCapabilities ReadCpuCapabilities() {
  worker::v1::WorkerCapabilities capabilities;
  capabilities.set_device(worker::v1::WorkerCapabilities::CPU);
  capabilities.set_device_name(
      FindKernelValue(ReadKernelFile("/proc/cpuinfo"), "model name").substr(0, 256));
  capabilities.set_memory_bytes(AvailableMemoryBytes());
  return capabilities;
}

}  // namespace quern

#include "services/worker/capabilities.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_split.h>

#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "core/base/machine.h"

namespace quern {
namespace {

// The value of the first line "key<blanks>:<blanks>value".
std::string FindValue(absl::string_view text, absl::string_view key) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 1));
    if (absl::StripAsciiWhitespace(parts.first) == key) {
      return std::string(absl::StripAsciiWhitespace(parts.second));
    }
  }
  return "";
}

}  // namespace

std::string ProcessorName(absl::string_view cpuinfo) {
  return FindValue(cpuinfo, "model name").substr(0, 256);
}

worker::v1::WorkerCapabilities ReadCpuCapabilities() {
  std::ifstream file("/proc/cpuinfo");
  const std::string cpuinfo((std::istreambuf_iterator<char>(file)),
                            std::istreambuf_iterator<char>());
  worker::v1::WorkerCapabilities capabilities;
  capabilities.set_device(worker::v1::WorkerCapabilities::CPU);
  capabilities.set_device_name(ProcessorName(cpuinfo));
  capabilities.set_memory_bytes(AvailableMemoryBytes());
  return capabilities;
}

}  // namespace quern

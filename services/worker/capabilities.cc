#include "services/worker/capabilities.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>

#include <fstream>
#include <sstream>
#include <string>

namespace quern {
namespace {

// Files below /proc have no size, so ReadFile, which maps sizes to limits, cannot read them.
std::string ReadProc(const char* path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

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

worker::v1::WorkerCapabilities ParseCpuCapabilities(absl::string_view cpuinfo,
                                                    absl::string_view meminfo) {
  worker::v1::WorkerCapabilities capabilities;
  capabilities.set_device(worker::v1::WorkerCapabilities::CPU);
  capabilities.set_device_name(FindValue(cpuinfo, "model name").substr(0, 256));
  const std::string total = FindValue(meminfo, "MemTotal");
  absl::string_view kibibytes = total;
  int64_t value = 0;
  if (absl::ConsumeSuffix(&kibibytes, " kB") && absl::SimpleAtoi(kibibytes, &value) && value > 0 &&
      value < (int64_t{1} << 50)) {
    capabilities.set_memory_bytes(value * 1024);
  }
  return capabilities;
}

worker::v1::WorkerCapabilities ReadCpuCapabilities() {
  return ParseCpuCapabilities(ReadProc("/proc/cpuinfo"), ReadProc("/proc/meminfo"));
}

}  // namespace quern

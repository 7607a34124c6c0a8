#include "services/quantizer/events.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <cmath>
#include <utility>

#include "core/base/log.h"
#include "core/base/utf8.h"
#include "services/quantizer/errors.h"

namespace quern {
namespace {

// Messages may quote bytes of a file; JSON takes UTF-8 only.
std::string Text(absl::string_view text) {
  std::string clean(text);
  if (IsUtf8(clean)) return clean;
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  return clean;
}

}  // namespace

EventWriter::EventWriter(FileDescriptor fd, std::function<void()> on_broken)
    : fd_(std::move(fd)), on_broken_(std::move(on_broken)) {}

void EventWriter::Device(const DeviceInfo& device, const ProductRates& rates) {
  Write({{"event", "device"},
         {"device", device.name},
         {"name", Text(device.detail)},
         {"memory_bytes", device.memory_bytes},
         {"gflops", rates.float32},
         {"bfloat16_gflops", rates.bfloat16}});
}

void EventWriter::Progress(Stage stage, int64_t completed, int64_t total,
                           std::optional<double> loss, std::optional<absl::Duration> remaining) {
  Json event = {{"event", "progress"},
                {"stage", std::string(StageName(stage))},
                {"completed", completed},
                {"total", total}};
  if (remaining.has_value()) event["remaining_seconds"] = absl::ToDoubleSeconds(*remaining);
  if (loss.has_value() && std::isfinite(*loss)) event["loss"] = *loss;
  Write(event);
}

void EventWriter::Log(absl::string_view message) {
  Write({{"event", "log"}, {"message", Text(message)}});
}

void EventWriter::Result(absl::string_view artifact_id, absl::string_view directory,
                         const Json& evaluation) {
  Write({{"event", "result"},
         {"artifact", std::string(artifact_id)},
         {"directory", Text(directory)},
         {"evaluation", evaluation}});
}

void EventWriter::Error(const absl::Status& status) {
  Write({{"event", "error"},
         {"code", static_cast<int>(status.code())},
         {"reason", ReasonOf(status)},
         {"message", Text(status.message())}});
}

void EventWriter::Write(const Json& event) {
  const std::string line = DumpCanonicalJson(event) + "\n";
  {
    MutexLock lock(&mutex_);
    if (broken_) return;
    absl::string_view left = line;
    while (!left.empty()) {
      const ssize_t written = write(fd_.get(), left.data(), left.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) break;
      left.remove_prefix(static_cast<size_t>(written));
    }
    if (left.empty()) return;
    broken_ = true;
    LOG(ERROR) << "nobody reads the events; stopping error=" << strerror(errno);
  }
  on_broken_();
}

}  // namespace quern

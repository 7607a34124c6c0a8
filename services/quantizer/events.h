#ifndef QUERN_SERVICES_QUANTIZER_EVENTS_H_
#define QUERN_SERVICES_QUANTIZER_EVENTS_H_

// What the quantizer tells the worker: one JSON object a line on standard output.

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/mutex.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"

namespace quern {

// Writes whole lines at once. Thread-safe.
class EventWriter {
 public:
  // `on_broken` is called once when the reader is gone: nobody waits for the result then.
  EventWriter(FileDescriptor fd, std::function<void()> on_broken);

  void Device(const DeviceInfo& device, const ProductRates& rates);
  void Progress(Stage stage, int64_t completed, int64_t total, std::optional<double> loss,
                std::optional<absl::Duration> remaining);
  void Log(absl::string_view message);
  // `evaluation`: an EvaluationReport in proto3 JSON.
  void Result(absl::string_view artifact_id, absl::string_view directory, const Json& evaluation);
  // `status` must not be OK.
  void Error(const absl::Status& status);

 private:
  void Write(const Json& event) ABSL_LOCKS_EXCLUDED(mutex_);

  Mutex mutex_;
  const FileDescriptor fd_ ABSL_GUARDED_BY(mutex_);
  const std::function<void()> on_broken_;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_EVENTS_H_

#ifndef QUERN_SERVICES_WORKER_METRICS_H_
#define QUERN_SERVICES_WORKER_METRICS_H_

#include <absl/base/thread_annotations.h>
#include <absl/time/time.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <array>
#include <string>

#include "core/base/mutex.h"

namespace quern {

// The metrics of quern-worker. Thread-safe.
class WorkerMetrics {
 public:
  // `registry` must outlive this.
  WorkerMetrics(prometheus::Registry& registry, const std::string& worker);

  // "cpu" or "cuda".
  void SetDevice(const std::string& device) ABSL_LOCKS_EXCLUDED(mutex_);
  // A job starts, reports, or is over.
  void StartJob() ABSL_LOCKS_EXCLUDED(mutex_);
  void Progress(const quantization::v1::Progress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  void EndJob() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void EndStage(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetRunning(quantization::v1::Progress::Stage stage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string worker_;
  prometheus::Family<prometheus::Gauge>& worker_up_;
  prometheus::Histogram& block_seconds_;
  prometheus::Gauge& block_loss_;
  prometheus::Gauge& progress_ratio_;
  // By number of the stage; the first stands for none.
  std::array<prometheus::Gauge*, quantization::v1::Progress::Stage_ARRAYSIZE> stage_running_{};
  std::array<prometheus::Histogram*, quantization::v1::Progress::Stage_ARRAYSIZE> stage_seconds_{};
  prometheus::Gauge& last_progress_;
  prometheus::Counter& checkpoints_written_total_;
  Mutex mutex_;
  prometheus::Gauge* up_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::string device_ ABSL_GUARDED_BY(mutex_);
  quantization::v1::Progress last_ ABSL_GUARDED_BY(mutex_);
  absl::Time stage_start_ ABSL_GUARDED_BY(mutex_);
  absl::Time unit_start_ ABSL_GUARDED_BY(mutex_);

 public:
  prometheus::Counter& quantizer_restarts_total;
  prometheus::Counter& leases_lost_total;
};

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_METRICS_H_

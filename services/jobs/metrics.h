#ifndef QUERN_SERVICES_JOBS_METRICS_H_
#define QUERN_SERVICES_JOBS_METRICS_H_

#include <absl/base/thread_annotations.h>
#include <absl/time/clock.h>
#include <absl/time/time.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <string>

#include "core/base/mutex.h"
#include "core/store/artifact_store.h"
#include "core/store/job_store.h"

namespace quern {

// The metrics of quern-jobs. Thread-safe.
class JobsMetrics {
 public:
  // `registry` must outlive this.
  explicit JobsMetrics(prometheus::Registry& registry);

  // `job` has just ended.
  void CountFinished(const JobRecord& job);
  // A worker asked for something, or has not for long.
  void MarkWorker(const std::string& worker, const std::string& device, absl::Time now)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Brings the gauges up to date.
  void SetJobs(const std::map<JobState, int64_t>& counts);
  void SetStore(const ArtifactStore::Usage& usage);
  // Age of the job that waits longest; zero when none waits.
  void SetOldestQueued(absl::Duration age) { oldest_queued_.Set(absl::ToDoubleSeconds(age)); }
  void ForgetWorkers(absl::Time now) ABSL_LOCKS_EXCLUDED(mutex_);

  prometheus::Histogram& StoreOp(const std::string& op, const std::string& backend);

 private:
  struct Worker {
    absl::Time last_seen;
    prometheus::Gauge* up;
  };

  prometheus::Family<prometheus::Gauge>& jobs_;
  prometheus::Family<prometheus::Counter>& finished_;
  prometheus::Family<prometheus::Gauge>& worker_up_;
  prometheus::Family<prometheus::Gauge>& store_bytes_;
  prometheus::Family<prometheus::Histogram>& store_op_seconds_;
  prometheus::Gauge& store_blobs_;
  prometheus::Gauge& oldest_queued_;
  Mutex mutex_;
  // By worker and device.
  std::map<std::pair<std::string, std::string>, Worker> workers_ ABSL_GUARDED_BY(mutex_);

 public:
  prometheus::Histogram& job_queue_seconds;
  prometheus::Counter& leases_expired_total;
  prometheus::Counter& fenced_writes_total;
  prometheus::Counter& job_retries_total;
  prometheus::Counter& dedupe_hits_total;
  prometheus::Counter& store_verify_failures_total;
  prometheus::Counter& store_gc_runs_total;
  prometheus::Counter& store_gc_bytes_freed_total;
};

// Observes the life of this object in seconds.
class StoreTimer {
 public:
  StoreTimer(JobsMetrics& metrics, const std::string& op, const std::string& backend)
      : histogram_(metrics.StoreOp(op, backend)), start_(absl::Now()) {}
  ~StoreTimer() { histogram_.Observe(absl::ToDoubleSeconds(absl::Now() - start_)); }
  StoreTimer(const StoreTimer&) = delete;
  StoreTimer& operator=(const StoreTimer&) = delete;

 private:
  prometheus::Histogram& histogram_;
  const absl::Time start_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_METRICS_H_

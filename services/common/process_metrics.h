#ifndef QUERN_SERVICES_COMMON_PROCESS_METRICS_H_
#define QUERN_SERVICES_COMMON_PROCESS_METRICS_H_

// What every service says of itself: its process under the names that Prometheus' own
// client libraries use, and the disk that its directory lies on.

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <string>

namespace quern {

// One thread at a time.
class ProcessMetrics {
 public:
  // `directory` is where the service keeps its files and `label` what the metrics call it: "data",
  // "work" or "cache". `registry` must outlive this.
  ProcessMetrics(prometheus::Registry& registry, const std::string& label, std::string directory);

  // Reads /proc/self and asks the file system. Call before each scrape.
  void Update();

 private:
  const std::string directory_;
  prometheus::Counter& cpu_seconds_total_;
  prometheus::Gauge& resident_bytes_;
  prometheus::Gauge& virtual_bytes_;
  prometheus::Gauge& start_time_;
  prometheus::Gauge& open_fds_;
  prometheus::Gauge& max_fds_;
  prometheus::Gauge& threads_;
  prometheus::Gauge& disk_free_;
  prometheus::Gauge& disk_size_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_PROCESS_METRICS_H_

#ifndef QUERN_SERVICES_CLI_DOCTOR_H_
#define QUERN_SERVICES_CLI_DOCTOR_H_

// The groups of checks of `quern doctor`. Each adds what it found; none changes anything.

#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <vector>

#include "services/cli/context.h"
#include "services/cli/findings.h"

namespace quern::cli {

struct DoctorOptions {
  std::string model_root;         // empty: from quern.json, or none
  std::string quantizer;          // empty: the one beside this program
  std::string jobs_metrics;       // HOST:PORT; empty: from quern.json, or the default
  std::string worker_metrics;     // likewise
  std::string inference_metrics;  // likewise
  std::string prometheus;         // URL; empty: not asked
  absl::Duration timeout = absl::Seconds(5);
};

// What quantizing the most demanding checkpoint takes.
struct Needs {
  std::string checkpoint;  // empty: no checkpoint is known
  int64_t memory_bytes = 0;
  int64_t disk_bytes = 0;
};

// Processor, memory, limits, clock; the disk of `data_directory`.
void CheckMachine(const Needs& needs, const std::string& data_directory, Findings& findings);

// That the real-time clock went as fast as the boot clock since construction.
class ClockWatch {
 public:
  ClockWatch();
  void Check(Findings& findings) const;

 private:
  const absl::Duration offset_;
};

// The checkpoints below `model_root`: what each takes, or why it is refused.
Needs CheckCheckpoints(const std::string& model_root, Findings& findings);

// Who may read and write the directories.
void CheckDirectories(const std::string& data_directory, const std::string& model_root,
                      Findings& findings);

// That the programs beside this one start and have its version.
void CheckPrograms(const std::string& directory, const std::string& quantizer, Findings& findings);

// The services: health, metrics, readiness, versions, workers, clocks; the default ports.
void CheckDeployment(const DoctorOptions& options, const Context& context, Findings& findings);

// That the Prometheus server at `url` scrapes the three jobs of deploy/prometheus/prometheus.yml.
void CheckPrometheus(const std::string& url, absl::Duration timeout, Findings& findings);

// Whether gRPC goes around a proxy for `host`, given $no_proxy's list.
bool ProxyIsBypassed(absl::string_view proxy_except, absl::string_view host);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_DOCTOR_H_

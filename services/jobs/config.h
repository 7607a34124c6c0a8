#ifndef QUERN_SERVICES_JOBS_CONFIG_H_
#define QUERN_SERVICES_JOBS_CONFIG_H_

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <cstdint>
#include <string>

#include "services/common/security_config.h"

namespace quern {

struct JobsConfig {
  std::string listen = "127.0.0.1:7400";
  std::string metrics_listen = "127.0.0.1:7401";
  SecurityConfig security;
  std::string ready_file;
  // Jobs and artifacts; made when it is not there. One process at a time.
  std::string data_directory;
  std::string model_root;  // checkpoints of tasks lie below it
  std::string data_root;   // calibration and evaluation texts lie below it

  // How long a job waits for a worker that fell silent. Shorter gives it on sooner; longer bears
  // slower networks.
  absl::Duration lease_duration = absl::Seconds(30);

  // Not flags: tests shorten them.
  absl::Duration reap_interval = absl::Seconds(1);
  absl::Duration drain_grace = absl::Seconds(10);
  int64_t disk_reserve_bytes = int64_t{1} << 30;

  // INVALID_ARGUMENT naming the flag; FAILED_PRECONDITION for a refused address.
  absl::Status Validate() const;
};

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_CONFIG_H_

#ifndef QUERN_SERVICES_WORKER_CONFIG_H_
#define QUERN_SERVICES_WORKER_CONFIG_H_

#include <absl/status/status.h>

#include <string>

#include "services/common/security_config.h"

namespace quern {

struct WorkerConfig {
  std::string jobs = "127.0.0.1:7400";  // address of quern-jobs
  std::string tls_ca;  // PEM file; quern-jobs must have a certificate of it. Empty: no TLS to it
  std::string token_file;  // shown to quern-jobs; empty: none
  std::string metrics_listen = "127.0.0.1:7411";
  SecurityConfig security;  // the certificate is shown to quern-jobs too
  std::string ready_file;
  // Unfinished work, one directory a job; made when it is not there. One worker at a time.
  std::string work_directory;
  std::string model_root;           // as quern-jobs has it
  std::string data_root;            // as quern-jobs has it
  std::string quantizer;            // path of quern-quantizer
  int threads = 0;                  // of the quantizer; 0: its own choice
  std::string device = "auto";      // auto, cpu or cuda
  int activation_memory_mib = 0;    // of the quantizer; 0: its own choice
  std::string name;                 // for logs and metrics
  std::string log_format = "text";  // handed to the quantizer

  // INVALID_ARGUMENT naming the flag; FAILED_PRECONDITION for a refused address.
  absl::Status Validate() const;
};

// The machine's name as far as a worker's name may hold it.
std::string DefaultWorkerName();

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_CONFIG_H_

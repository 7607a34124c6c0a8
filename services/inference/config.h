#ifndef QUERN_SERVICES_INFERENCE_CONFIG_H_
#define QUERN_SERVICES_INFERENCE_CONFIG_H_

#include <absl/status/status.h>
#include <absl/time/time.h>

#include <cstdint>
#include <string>

#include "services/common/security_config.h"

namespace quern {

// Settings of quern-inference. Filled from flags in main.cc.
struct InferenceConfig {
  std::string listen = "127.0.0.1:7420";
  std::string http_listen = "127.0.0.1:7422";  // OpenAI's API; empty: none
  std::string metrics_listen = "127.0.0.1:7421";
  SecurityConfig security;
  std::string ready_file;  // empty: none
  // quern-jobs, where artifacts come from; empty: only cached ones and checkpoints can be served.
  std::string jobs = "127.0.0.1:7400";
  std::string tls_ca;  // PEM file; quern-jobs must have a certificate of it. Empty: no TLS to it
  std::string token_file;  // shown to quern-jobs; empty: none
  std::string cache_directory = "quern-cache";
  std::string model_root;  // where checkpoints may be; empty: none can be served
  int threads = 0;         // of a step; 0: one for each CPU this process may use
  int kv_cache_mib = 512;  // KV pages of each model
  // Of a step; see EngineOptions.
  int max_sequences = 64;
  int max_step_tokens = 256;
  // In the engine, beyond those that run: requests, and tokens of all of them; see EngineOptions.
  int max_queued_requests = 256;
  int64_t max_queued_tokens = int64_t{1} << 20;
  absl::Duration max_queue_wait = absl::Minutes(1);
  // From a request's arrival to its end, whichever front it came by.
  absl::Duration request_timeout = absl::Hours(1);
  // Of models that are loaded without one: float16, int8 or int4.
  std::string kv_cache_type = "float16";
  bool prefix_cache = true;  // prompts that begin alike share keys and values
  // For all models together; 0: nine tenths of what the machine or its control group grants.
  int model_memory_mib = 0;
  bool evict_idle_models = false;  // a load may take models out of memory that nobody uses
  // A model that nobody used for this long leaves memory until the next request; 0: never.
  absl::Duration idle_model_timeout = absl::ZeroDuration();
  // Running requests may take this long to finish after a signal to stop.
  absl::Duration drain_grace = absl::Seconds(30);

  // INVALID_ARGUMENT naming the flag, its value and what is allowed.
  absl::Status Validate() const;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_CONFIG_H_

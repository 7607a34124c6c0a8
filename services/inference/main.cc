// quern-inference: serves models over gRPC.

#include <absl/flags/flag.h>
#include <absl/time/time.h>

#include <cstdint>
#include <memory>
#include <string>

#include "core/base/clock.h"
#include "core/base/log.h"
#include "services/common/flags.h"
#include "services/common/ready_file.h"
#include "services/common/signals.h"
#include "services/inference/config.h"
#include "services/inference/inference_server.h"

ABSL_FLAG(std::string, listen, quern::InferenceConfig().listen,
          "HOST:PORT for gRPC; port 0 means any free one");
ABSL_FLAG(std::string, http_listen, quern::InferenceConfig().http_listen,
          "HOST:PORT of OpenAI's HTTP API; empty: none");
ABSL_FLAG(std::string, jobs, quern::InferenceConfig().jobs,
          "HOST:PORT of quern-jobs, where artifacts are pulled from; empty: none");
ABSL_FLAG(std::string, tls_ca, "",
          "PEM file of the CA that the certificate of --jobs must come from; empty: no TLS to it");
ABSL_FLAG(std::string, token_file, "",
          "file with the token that is shown to --jobs, a reader's; empty: none");
ABSL_FLAG(std::string, cache_directory, quern::InferenceConfig().cache_directory,
          "where pulled artifacts are kept");
ABSL_FLAG(std::string, model_root, "",
          "directory that checkpoints to be served as they are lie below; empty: none");
ABSL_FLAG(int, threads, quern::InferenceConfig().threads,
          "threads of a step, 0 to 1024; 0 means one for each CPU that this process may use");
ABSL_FLAG(int, kv_cache_mib, quern::InferenceConfig().kv_cache_mib,
          "MiB of memory for the KV pages of each model, 1 to 1048576");
ABSL_FLAG(int, max_sequences, quern::InferenceConfig().max_sequences,
          "requests of one model that run at a time, 1 to 4096");
ABSL_FLAG(int, max_step_tokens, quern::InferenceConfig().max_step_tokens,
          "tokens that one step computes, --max-sequences to 65536: more are quicker to read "
          "prompts, fewer shorten the time between tokens of the answers meanwhile");
ABSL_FLAG(int, max_queued_requests, quern::InferenceConfig().max_queued_requests,
          "requests that may wait beyond those that can run, 0 to 1000000; more are refused");
ABSL_FLAG(int64_t, max_queued_tokens, quern::InferenceConfig().max_queued_tokens,
          "tokens of all unfinished requests, prompts and answers asked for, 1 to 1099511627776; "
          "more are refused");
ABSL_FLAG(
    absl::Duration, max_queue_wait, quern::InferenceConfig().max_queue_wait,
    "a request that would have to wait for longer than this (500ms, 1m, inf), by an estimate, "
    "is refused, unless its priority is low; what clients accept as time to the first token");
ABSL_FLAG(absl::Duration, request_timeout, quern::InferenceConfig().request_timeout,
          "time that a request may take from its arrival to its end, 1s to 168h");
ABSL_FLAG(std::string, kv_cache_type, quern::InferenceConfig().kv_cache_type,
          "what keys and values of models that name no type are kept as: float16, int8 or int4");
ABSL_FLAG(bool, prefix_cache, quern::InferenceConfig().prefix_cache,
          "prompts that begin alike share the keys and values of what they have in common");
ABSL_FLAG(int, model_memory_mib, quern::InferenceConfig().model_memory_mib,
          "MiB of memory for all models together, 0 to 1073741824; 0 means nine tenths of what the "
          "machine or its control group grants");
ABSL_FLAG(
    bool, evict_idle_models, quern::InferenceConfig().evict_idle_models,
    "loading a model may take others out of memory that nobody uses, the longest unused first; "
    "the next request for one loads it again");
ABSL_FLAG(absl::Duration, idle_model_timeout, quern::InferenceConfig().idle_model_timeout,
          "a model that nobody used for this long (10m, 2h) is taken out of memory until the next "
          "request for it; 0 means never");

namespace quern {
namespace {

InferenceConfig ReadConfig(int argc, char** argv) {
  InferenceConfig config;
  const CommonConfig common =
      InitService("quern-inference", "Serves quantized models over gRPC and HTTP.",
                  config.metrics_listen, argc, argv);
  config.listen = absl::GetFlag(FLAGS_listen);
  config.http_listen = absl::GetFlag(FLAGS_http_listen);
  config.metrics_listen = common.metrics_listen;
  config.security = common.security;
  config.ready_file = common.ready_file;
  config.jobs = absl::GetFlag(FLAGS_jobs);
  config.tls_ca = absl::GetFlag(FLAGS_tls_ca);
  config.token_file = absl::GetFlag(FLAGS_token_file);
  config.cache_directory = absl::GetFlag(FLAGS_cache_directory);
  config.model_root = absl::GetFlag(FLAGS_model_root);
  config.threads = absl::GetFlag(FLAGS_threads);
  config.kv_cache_mib = absl::GetFlag(FLAGS_kv_cache_mib);
  config.max_sequences = absl::GetFlag(FLAGS_max_sequences);
  config.max_step_tokens = absl::GetFlag(FLAGS_max_step_tokens);
  config.max_queued_requests = absl::GetFlag(FLAGS_max_queued_requests);
  config.max_queued_tokens = absl::GetFlag(FLAGS_max_queued_tokens);
  config.max_queue_wait = absl::GetFlag(FLAGS_max_queue_wait);
  config.request_timeout = absl::GetFlag(FLAGS_request_timeout);
  config.kv_cache_type = absl::GetFlag(FLAGS_kv_cache_type);
  config.prefix_cache = absl::GetFlag(FLAGS_prefix_cache);
  config.model_memory_mib = absl::GetFlag(FLAGS_model_memory_mib);
  config.evict_idle_models = absl::GetFlag(FLAGS_evict_idle_models);
  config.idle_model_timeout = absl::GetFlag(FLAGS_idle_model_timeout);
  return config;
}

int Main(int argc, char** argv) {
  const InferenceConfig config = ReadConfig(argc, argv);
  if (const absl::Status removed = RemoveReadyFile(config.ready_file); !removed.ok()) {
    LOG(ERROR) << removed.message();
    return kExitConfig;
  }
  SystemClock clock;
  const absl::StatusOr<std::unique_ptr<InferenceServer>> server =
      InferenceServer::Start(config, clock);
  if (!server.ok()) {
    LOG(ERROR) << "not started: " << server.status().message();
    return kExitConfig;
  }
  const absl::Status written =
      WriteReadyFile(config.ready_file, {.grpc = (*server)->grpc_address(),
                                         .http = (*server)->http_address(),
                                         .metrics = (*server)->metrics_address()});
  if (!written.ok()) {
    LOG(ERROR) << "not started: " << written.message();
    return kExitConfig;
  }
  LOG(INFO) << "serving grpc=" << (*server)->grpc_address() << " http=" << (*server)->http_address()
            << " metrics=" << (*server)->metrics_address() << " cache=" << config.cache_directory;
  const int signal = WaitForShutdownSignal();
  LOG(INFO) << "shutting down signal=" << signal;
  (*server)->Shutdown();
  LOG(INFO) << "stopped";
  return 0;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) { return quern::Main(argc, argv); }

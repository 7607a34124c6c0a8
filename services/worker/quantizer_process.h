#ifndef QUERN_SERVICES_WORKER_QUANTIZER_PROCESS_H_
#define QUERN_SERVICES_WORKER_QUANTIZER_PROCESS_H_

#include <absl/time/time.h>
#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "services/worker/quantizer_runner.h"

namespace quern {

struct QuantizerProcessOptions {
  std::string program;
  std::string model_root;
  std::string data_root;
  int threads = 0;                // 0: the quantizer's own choice
  int activation_memory_mib = 0;  // 0: the same
  std::string device = "auto";
  std::string log_format = "text";
  // Leads to quern-jobs, where artifacts come from that tasks start from.
  std::shared_ptr<grpc::Channel> jobs;
  // From SIGTERM to SIGKILL.
  absl::Duration stop_grace = absl::Seconds(20);
  // A quantizer that crashed is started again until it has crashed more often than this since its
  // last progress.
  int max_restarts = 3;
};

// Runs each task in a child process, quern-quantizer, which dies with this process. The child takes
// up where the last one in the same work directory stopped.
class QuantizerProcessRunner final : public QuantizerRunner {
 public:
  explicit QuantizerProcessRunner(QuantizerProcessOptions options) : options_(std::move(options)) {}
  std::unique_ptr<QuantizerRun> Start(const QuantizerJob& job,
                                      QuantizerObserver& observer) override;

 private:
  const QuantizerProcessOptions options_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_QUANTIZER_PROCESS_H_

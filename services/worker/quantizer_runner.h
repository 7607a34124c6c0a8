#ifndef QUERN_SERVICES_WORKER_QUANTIZER_RUNNER_H_
#define QUERN_SERVICES_WORKER_QUANTIZER_RUNNER_H_

// What runs a task: a child process, or a fake in tests.

#include <quern/quantization/v1/quantization_service.pb.h>
#include <quern/worker/v1/worker_service.pb.h>

#include <memory>
#include <optional>
#include <string>

namespace quern {

struct QuantizerJob {
  std::string id;
  quantization::v1::QuantizationJob task;  // its task alone
  // There already; what an earlier run left in it is taken up again.
  std::string work_directory;
};

struct QuantizerResult {
  std::string directory;  // of the artifact
  quantization::v1::EvaluationReport evaluation;
};

struct QuantizerOutcome {
  std::optional<QuantizerResult> result;
  // Without a result: why. Code CANCELLED after Stop or Kill.
  quantization::v1::JobError error;
};

// Hears of a run, on a thread of the run, one call at a time; calls must not block for long.
class QuantizerObserver {
 public:
  virtual ~QuantizerObserver() = default;
  virtual void OnDevice(const worker::v1::WorkerCapabilities& device) = 0;
  virtual void OnProgress(const quantization::v1::Progress& progress) = 0;
  virtual void OnLog(const std::string& line) = 0;
  // It crashed and is started again.
  virtual void OnRestart() = 0;
  // Always the last call.
  virtual void OnEnd(QuantizerOutcome outcome) = 0;
};

// One task being run. Destroying it kills what still runs and waits for that. Stop and Kill may be
// called from any thread, at any time, more than once.
class QuantizerRun {
 public:
  virtual ~QuantizerRun() = default;
  // Asks it to stop; after a grace it is killed. The work directory stays usable.
  virtual void Stop() = 0;
  virtual void Kill() = 0;
};

// Thread-compatible.
class QuantizerRunner {
 public:
  virtual ~QuantizerRunner() = default;
  // `observer` must outlive the run.
  virtual std::unique_ptr<QuantizerRun> Start(const QuantizerJob& job,
                                              QuantizerObserver& observer) = 0;
};

}  // namespace quern

#endif  // QUERN_SERVICES_WORKER_QUANTIZER_RUNNER_H_

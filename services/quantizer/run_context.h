#ifndef QUERN_SERVICES_QUANTIZER_RUN_CONTEXT_H_
#define QUERN_SERVICES_QUANTIZER_RUN_CONTEXT_H_

// What runs of every kind of task have in common: the work directory, the device, how text is found
// and how a result is kept.

#include <absl/functional/function_ref.h>
#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/eval/evaluate.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"
#include "services/quantizer/cancellation.h"
#include "services/quantizer/config.h"
#include "services/quantizer/events.h"
#include "services/quantizer/progress.h"

namespace quern {

// The status with `where` before its message, code and payloads kept.
absl::Status Prefixed(const absl::Status& status, absl::string_view where);

// All bytes of an artifact's files, its manifest among them.
int64_t SizeOf(const Manifest& manifest);

// Thread-compatible.
class RunContext {
 public:
  // All must outlive this.
  RunContext(const QuantizerConfig& config, EventWriter& events, Cancellation& cancellation,
             Clock& clock);

  // Finds the device, locks the work directory and returns the task file's bytes.
  // DEVICE_NOT_AVAILABLE, WORK_DIRECTORY_IN_USE.
  absl::StatusOr<std::string> Open();

  // A name in the work directory.
  std::string Work(absl::string_view name) const {
    return absl::StrCat(config_.work_directory, "/", name);
  }
  // The real path of `path` below `root`. INVALID_TASK when it leads out.
  absl::StatusOr<std::string> Resolve(absl::string_view root, absl::string_view path) const;

  // What a plan may count on, for a source of so many bytes a weight.
  Machine ThisMachine(int source_bytes_per_weight) const;
  // OUT_OF_DISK when the work directory's file system has no room for what the stages write.
  absl::Status CheckDisk(const std::vector<StageCost>& stages) const;
  QuantizeOptions TrainingOptions();

  // The text that `data` names, in chunks; nothing when it names none. EVALUATION_INVALID.
  absl::StatusOr<std::vector<EvaluationText>> ReadEvaluationText(const EvaluationData& data,
                                                                 const Tokenizer& tokenizer) const;

  // Whether an earlier run for `key` came to its end and its artifact is intact: then its result
  // is reported again.
  bool RepeatResult(absl::string_view key);

  // Has `write` make a new directory, which then becomes artifact/ in one step.
  absl::Status KeepArtifact(absl::FunctionRef<absl::Status(const std::string& directory)> write);

  // Stores and reports the result; the trainer's own files go.
  absl::Status Finish(absl::string_view key, const std::string& artifact_id, const Json& report);

  // The end of a run that makes no artifact.
  void ReportEvaluation(const Json& report) { events_.Result("", "", report); }

  const QuantizerConfig& config() const { return config_; }
  int num_threads() const { return num_threads_; }
  const DeviceInfo& device() const { return device_; }
  // Measured by Open.
  const ProductRates& product_rates() const { return product_rates_; }
  Cancellation& cancellation() { return cancellation_; }
  ProgressReporter& progress() { return progress_; }

 private:
  absl::Status LockWorkDirectory();
  int64_t ActivationMemoryBytes() const;

  const QuantizerConfig& config_;
  const int num_threads_;
  EventWriter& events_;
  Cancellation& cancellation_;
  ProgressReporter progress_;
  FileDescriptor lock_;
  DeviceInfo device_;
  ProductRates product_rates_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_RUN_CONTEXT_H_

#ifndef QUERN_SERVICES_QUANTIZER_CONFIG_H_
#define QUERN_SERVICES_QUANTIZER_CONFIG_H_

#include <absl/status/status.h>

#include <string>

namespace quern {

// What the command line says.
struct QuantizerConfig {
  std::string kind = "quantize";  // of the task: "quantize", "tune" or "evaluate"
  std::string
      task_path;  // proto3 JSON of quern.quantization.v1.QuantizeTask, TuneTask or EvaluateTask
  std::string work_directory;  // unfinished work and the result; kept between runs of one job
  std::string model_root;      // checkpoints lie below it
  std::string data_root;       // calibration and evaluation texts lie below it
  std::string artifact_root;   // artifacts lie below it, each by its id; for tasks that name one
  int num_threads = 0;         // 0: one for each core
  std::string device = "auto";
  int activation_memory_mib = 0;  // 0: half of the device's
  bool profile = false;           // print at the end where the time went

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_CONFIG_H_

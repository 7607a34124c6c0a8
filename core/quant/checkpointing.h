#ifndef QUERN_CORE_QUANT_CHECKPOINTING_H_
#define QUERN_CORE_QUANT_CHECKPOINTING_H_

// What a training run keeps on disk, so that it can be killed at any moment and go on to the same
// bytes: a file per finished block, and the state of end-to-end training in two generations.
// Activations are not kept: they are replayed through the finished blocks.
//
// Every file carries a SHA-256 over the run's fingerprint, the SHA-256 of the block before it and
// its own tensors. What does not fit is damaged or stale and is computed again, never trusted.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"

namespace quern {

// A transformer block after Block-AP, by full Hugging Face tensor names.
struct TrainedBlock {
  std::map<std::string, PackedTensor> matrices;
  std::map<std::string, std::vector<float>> vectors;  // norms and biases
  double loss = 0;                                    // what training reported for it
};

// End-to-end training between two steps.
struct E2eState {
  int64_t num_steps_done = 0;
  // Of every learning rate: 1, or less after a rewind.
  double rate_factor = 1;
  double first_loss = 0;  // of step 0
  // What is trained and Adam's moments, in the order of training.
  std::vector<std::vector<float>> tensors;
};

// One run's directory. Thread-compatible.
class TrainingDirectory {
 public:
  // Makes the directory or takes it over, for the run with this fingerprint (64 hex digits). What
  // runs with others left there is replaced as training goes on: a job that comes back to a worker
  // which has another version or number of threads by then starts again.
  static absl::StatusOr<TrainingDirectory> Open(absl::string_view path,
                                                absl::string_view fingerprint);

  // The longest run of intact blocks from block 0.
  std::vector<TrainedBlock> LoadBlocks(int num_layers);

  // Durable when it returns. Blocks must be saved in order, after those that LoadBlocks gave.
  absl::Status SaveBlock(int layer, const TrainedBlock& block);

  // The newest intact state of training after the last saved block.
  std::optional<E2eState> LoadE2e();

  // Replaces the older of the two generations. Durable when it returns.
  absl::Status SaveE2e(const E2eState& state);

 private:
  TrainingDirectory(absl::string_view path, absl::string_view fingerprint)
      : path_(path), fingerprint_(fingerprint), chain_(fingerprint) {}
  std::string BlockPath(int layer) const;
  std::string E2ePath(int generation) const;

  std::string path_;
  std::string fingerprint_;
  std::string chain_;  // SHA-256 of the last block, or the fingerprint before block 0
  int next_generation_ = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_QUANT_CHECKPOINTING_H_

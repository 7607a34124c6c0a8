#ifndef QUERN_CORE_QUANT_LOSS_LOOPS_H_
#define QUERN_CORE_QUANT_LOSS_LOOPS_H_

// Losses of one row of logits and their gradients, in floats. Plain loops, without LibTorch.

#include <cstdint>
#include <vector>

namespace quern {

// Logits of the vocabulary: floats, or bfloat16 as their upper halves.
struct LogitRow {
  void* data;
  bool bfloat16;
};

constexpr int64_t LossScratchFloats(int64_t vocab_size) {
  return 2 * ((vocab_size + 15) / 16 * 16);
}

// A token that counts for `share`, 0 to 1, of a loss.
struct HardTarget {
  int64_t token = 0;
  float share = 0;
};

struct LossLoops {
  const char* name;
  // (1 - share) KL(softmax(teacher) || softmax(student)) - share log softmax(student)[token]; the
  // student's logits become its gradient: softmax(student) less softmax(teacher) and the token's 1,
  // by their shares.
  double (*divergence)(LogitRow student, LogitRow teacher, HardTarget target, int64_t vocab_size,
                       float* scratch);
  // -log softmax(student)[target]; the same with 1 at the target instead of the teacher's.
  double (*cross_entropy)(LogitRow student, int64_t target, int64_t vocab_size, float* scratch);
};

// Those that this machine can run, the fastest first.
const std::vector<LossLoops>& SupportedLossLoops();

}  // namespace quern

#endif  // QUERN_CORE_QUANT_LOSS_LOOPS_H_

#ifndef QUERN_CORE_QUANT_ATTENTION_LOOPS_H_
#define QUERN_CORE_QUANT_ATTENTION_LOOPS_H_

// Causal attention of one head and its way back, in floats, block of queries by block of queries:
// scores of a block are kept, never of all, and those of keys behind the last query are not
// computed. Plain loops, without LibTorch.

#include <cstdint>
#include <vector>

namespace quern {

// What a head's rows are filled up to with zeros, and a transposed matrix's columns.
inline constexpr int64_t kAttentionPadding = 16;
constexpr int64_t PadForAttention(int64_t count) {
  return (count + kAttentionPadding - 1) / kAttentionPadding * kAttentionPadding;
}

// Queries of one block; what the loops need besides is AttentionScratchFloats.
inline constexpr int64_t kAttentionRows = 48;
constexpr int64_t AttentionScratchFloats(int64_t num_tokens) {
  return 2 * kAttentionRows * PadForAttention(num_tokens);
}

// One head. `dim` is the padded head dimension; matrices are [num_tokens, dim], transposed ones
// [dim, PadForAttention(num_tokens)]; what is padding is zero. Rows of the output and of its
// gradient lie `out_stride` apart, as those of all heads of a token lie side by side.
struct AttentionHead {
  int64_t num_tokens;
  int64_t dim;
  int64_t out_stride;
  float scale;  // of scores
  const float* queries;
  const float* transposed_keys;
  const float* values;
};

// What the way back needs beside the head.
struct AttentionGrads {
  const float* keys;
  const float* transposed_values;
  const float* out;       // as `attend` left it
  const float* log_sums;  // the same
  const float* grad_out;  // [num_tokens, dim]
  float* grad_queries;    // [num_tokens, dim]; rows [begin, end) are written
  float* grad_keys;       // [num_tokens, dim]; added to
  float* grad_values;     // the same
};

// The loops for one instruction set. What they give differs between sets by rounding alone.
struct AttentionLoops {
  const char* name;
  // Rows [begin, end) of softmax(causal(scale * Q K^T)) V into `out` [num_tokens, dim], and the
  // logarithms of the sums of the exponentials of their scores into `log_sums` [num_tokens]. The
  // same however rows are cut into calls at multiples of kAttentionRows.
  void (*attend)(const AttentionHead& head, int64_t begin, int64_t end, float* scratch, float* out,
                 float* log_sums);
  // Gradients that rows [begin, end) of the output give.
  void (*backpropagate)(const AttentionHead& head, const AttentionGrads& grads, int64_t begin,
                        int64_t end, float* scratch);
};

// Those that this machine can run, the fastest first.
const std::vector<AttentionLoops>& SupportedAttentionLoops();

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ATTENTION_LOOPS_H_

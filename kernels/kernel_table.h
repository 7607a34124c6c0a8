#ifndef QUERN_KERNELS_KERNEL_TABLE_H_
#define QUERN_KERNELS_KERNEL_TABLE_H_

// What one instruction set offers: plain functions on raw memory. This header is also compiled with
// the flags of each instruction set, so it holds no inline function and includes nothing that does
// (the linker would keep one copy for all CPUs). Users include kernels/kernels.h.

#include <cstddef>
#include <cstdint>

#include "kernels/packed_matrix.h"

namespace quern::kernels {

// Rows are prepacked, split and computed in runs of this many; the last run is padded.
inline constexpr int kRowBlock = 32;

// A matrix in the order this table's kernels read: a permutation without loss, made once at load.
// `data` is 64-byte aligned and holds prepacked_bytes.
struct PrepackedMatrix {
  int rows = 0;
  int cols = 0;
  // 2, 3, 4 or 8 when packed; 0 when dense.
  int bits = 0;
  int group_size = 0;
  bool symmetric = false;
  DenseMatrix::Type dense_type = DenseMatrix::Type::kF32;
  const uint8_t* data = nullptr;
};

// How low-bit products see their input. kInt8 is fast; kInt16, for comparisons, is closer to the
// floats than half floats are, and costs about twice as much.
enum class ActivationPrecision { kInt8, kInt16 };

struct ActivationFormat {
  int cols = 0;
  int group_size = 0;
  ActivationPrecision precision = ActivationPrecision::kInt8;
};

// Keys and values of one layer for one sequence, in pages of `page_tokens` positions. Page p of
// the sequence starts at keys + page_table[p] * page_stride; inside, position t of key/value head h
// is the run of head_dim half floats at (h * page_tokens + t) * head_dim, so that a head reads
// consecutive memory. Values alike.
struct PagedKv {
  uint16_t* keys = nullptr;
  uint16_t* values = nullptr;
  const int32_t* page_table = nullptr;
  int64_t page_stride = 0;  // in elements
  int page_tokens = 0;
};

inline constexpr int kMaxHeadDim = 256;

// Positions of a quantized page.
inline constexpr int kQuantizedPageTokens = 64;
// Channels of a value that share a scale; the last group of a head is shorter.
inline constexpr int kKvGroupChannels = 64;

// Keys and values of one layer for one sequence whose whole pages of kQuantizedPageTokens are
// rounded to integers of `bits` (4 or 8), while the page being filled, the open one, is kept in
// half floats. A token reads the pages before its own as integers and its own page up to itself as
// half floats, also when that page has been rounded since: which form it reads depends on its
// position alone.
//
// A page holds one region of quantized_head_bytes for each key/value head:
//   key codes      [head_dim][kQuantizedPageTokens]
//   value codes    [kQuantizedPageTokens][head_dim, padded to 16]
//   key scales     [head_dim] halves, then as many offsets
//   value scales   [groups of channels][kQuantizedPageTokens] halves, then as many offsets
// value = code * scale + offset; offset = the least of the group, scale = (the largest - the least)
// / (2^bits - 1), both as halves, code = round((value - offset) / scale) to even. Keys share them
// along the positions, as their outliers stay in a few channels, values along the channels (KIVI,
// Liu et al. 2024). A group with a NaN or an infinity has the scale NaN.
// Codes lie in runs of 16: 16 bytes, or with 4 bits 8 bytes, code i at the low half of byte i,
// code 8 + i at its high half.
struct QuantizedKv {
  int bits = 0;
  uint8_t* pages = nullptr;  // page p of the sequence: pages + page_table[p] * page_stride
  const int32_t* page_table = nullptr;
  int64_t page_stride = 0;  // in bytes
  // The open page as one page of half floats, so that its page_table is {0}; page_tokens may be
  // larger than kQuantizedPageTokens.
  PagedKv open;
};

struct AttentionShape {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // at most kMaxHeadDim
};

// Query tokens at consecutive positions of one sequence. Token t is at queries + t * query_stride,
// [num_heads * head_dim], and sees positions [0, first_position + t]; out alike. Heads
// [head_begin, head_end) are computed. out must not overlap queries.
struct AttentionQuery {
  const float* queries = nullptr;
  int64_t query_stride = 0;
  int first_position = 0;
  int num_tokens = 0;
  int head_begin = 0;
  int head_end = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// Bytes behind KernelTable::multiply_bytes.
inline constexpr int kPeakOperandBytes = 16384;

struct KernelTable {
  const char* name;  // "avx2", "scalar"

  // --- Matrices -------------------------------------------------------------------------------
  size_t (*prepacked_bytes)(const PackedMatrix& w);
  // Rows [row_begin, row_end) into `out` (the whole matrix's buffer); row_begin and, unless it is
  // the end, row_end are multiples of kRowBlock.
  void (*prepack)(const PackedMatrix& w, int row_begin, int row_end, uint8_t* out);
  size_t (*prepacked_dense_bytes)(const DenseMatrix& w);
  void (*prepack_dense)(const DenseMatrix& w, int row_begin, int row_end, uint8_t* out);

  // Activations in groups of (token, group_size inputs), each with a scale. int8: scale = max|x| /
  // 127, value = round(x / scale) to even. kInt16: max|x| / 32512, kept as two int8 planes. A group
  // that holds a NaN or an infinity makes every output of its token NaN. The layout behind `out`
  // (64-byte aligned, activation_bytes) is the table's own; tokens [token_begin, token_end) are
  // written, so threads may share the work.
  size_t (*activation_bytes)(const ActivationFormat& format, int num_tokens);
  void (*quantize_activations)(const ActivationFormat& format, const float* x, int64_t x_stride,
                               int token_begin, int token_end, uint8_t* out);

  // y[t][r] (+)= sum_c x[t][c] * w[r][c] for rows [row_begin, row_end) of all tokens.
  // y: row-major with `y_stride` floats from token to token, indexed by absolute row.
  // accumulate: the sum starts from what is there. `w` packed, `activations` from
  // quantize_activations with the same cols and group_size and with `precision`. Against products
  // with x itself the error of an output is at most
  //   sum over groups of scale(group) / 2 * sum_c |w[r][c]|
  // and a few roundings of floats.
  void (*matmul)(const PrepackedMatrix& w, const uint8_t* activations,
                 ActivationPrecision precision, int num_tokens, int row_begin, int row_end,
                 bool accumulate, float* y, int64_t y_stride);
  // The same with `w` dense and x as floats, [num_tokens][x_stride].
  void (*matmul_dense)(const PrepackedMatrix& w, const float* x, int64_t x_stride, int num_tokens,
                       int row_begin, int row_end, bool accumulate, float* y, int64_t y_stride);
  // Row `row` of either kind as floats: an embedding look-up. out: [cols].
  void (*get_row)(const PrepackedMatrix& w, int row, float* out);

  // --- Everything between the matrices ----------------------------------------------------------
  // out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; out may be x.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
  // Turns pairs (i, i + head_dim / 2) of each head in place. cos_sin: [head_dim] = the cosines of
  // the head_dim / 2 angles, then their sines.
  void (*rope)(float* heads, int num_heads, int head_dim, const float* cos_sin);
  // out[i] = silu(gate[i]) * up[i].
  void (*silu_mul)(const float* gate, const float* up, int n, float* out);
  // y[i] += x[i].
  void (*add)(const float* x, int n, float* y);
  // Rounds keys and values of one position, [num_kv_heads * head_dim] each, into the pages.
  void (*store_kv)(const PagedKv& kv, const AttentionShape& shape, int position, const float* key,
                   const float* value);
  // softmax(q k / sqrt(head_dim)) v. Tokens of one call, and heads that share a key/value head,
  // share its reading. scratch: attention_scratch_floats floats.
  size_t (*attention_scratch_floats)(const AttentionShape& shape);
  void (*attention)(const PagedKv& kv, const AttentionShape& shape, const AttentionQuery& query,
                    float* scratch);
  // Of one key/value head in a page of QuantizedKv; even.
  size_t (*quantized_head_bytes)(int bits, int head_dim);
  // Rounds key/value heads [head_begin, head_end) of the open page, which is whole, into page
  // `page` of the sequence.
  void (*quantize_kv)(const QuantizedKv& kv, const AttentionShape& shape, int page, int head_begin,
                      int head_end);
  // As `attention`; all tokens of the query are in the open page.
  void (*attention_quantized)(const QuantizedKv& kv, const AttentionShape& shape,
                              const AttentionQuery& query, float* scratch);

  // --- Limits of the CPU, to measure rates against ----------------------------------------------
  // Reads [p, p + n) once, in order, with the prefetching of the weight stream; n a multiple of
  // 256.
  uint64_t (*read)(const uint8_t* p, size_t n);
  // The inner loop of the low-bit products for many tokens, with operands in L1 and nothing around
  // it. operands: kPeakOperandBytes, 64-byte aligned. Returns operations done: 2 a multiply-add.
  int64_t (*multiply_bytes)(const uint8_t* operands, int64_t rounds);
  // Independent chains of float multiply-adds in registers. Returns operations done.
  int64_t (*multiply_floats)(int64_t rounds);
};

}  // namespace quern::kernels

#endif  // QUERN_KERNELS_KERNEL_TABLE_H_

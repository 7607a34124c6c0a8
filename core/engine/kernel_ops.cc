#include "core/engine/kernel_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/base/status_macros.h"
#include "core/model/decoder.h"

namespace quern {

static_assert(DecoderOps<KernelOps>);

namespace {

constexpr int64_t kAlignment = 64;

// Work below which waking another thread costs more than it saves (a few microseconds), in
// multiplications and in elements of a row-wise operation.
constexpr int64_t kMinProducts = 32 * 1024;
constexpr int64_t kMinElements = 4 * 1024;

// Query tokens that share the reading of keys and values: enough that it costs little beside the
// products, few enough to share a prefill between the threads.
constexpr int kAttentionTokens = 16;

// Items of `cost` that are worth a thread.
int64_t Grain(int64_t cost, int64_t min_cost) { return std::max<int64_t>(1, min_cost / cost); }

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

kernels::AttentionShape Heads(const ModelConfig& config) {
  return {.num_heads = config.num_attention_heads,
          .num_kv_heads = config.num_key_value_heads,
          .head_dim = config.head_dim};
}

int64_t SumTokens(const Batch& batch) {
  int64_t sum = 0;
  for (const BatchRun& run : batch) sum += static_cast<int64_t>(run.tokens.size());
  return sum;
}

void AddBias(const kernels::KernelTable& kernels, const CpuLinear& linear, int row_begin,
             int row_end, int64_t num_rows, FloatRows y) {
  if (linear.bias.empty()) return;
  for (int64_t t = 0; t < num_rows; ++t) {
    kernels.add(linear.bias.data() + row_begin, row_end - row_begin, y.row(t) + row_begin);
  }
}

// Bytes of the quantized input of each matrix, at most.
size_t ActivationBytes(const CpuWeights& weights, const kernels::KernelTable& kernels,
                       const BackendLimits& limits) {
  size_t bytes = 0;
  const auto include = [&](const CpuLinear& linear, int num_rows) {
    if (linear.input.is_float()) return;
    bytes = std::max(bytes, kernels.activation_bytes({.cols = linear.matrix.cols,
                                                      .group_size = linear.input.group_size,
                                                      .precision = linear.input.precision},
                                                     num_rows));
  };
  for (const CpuBlock& block : weights.blocks) {
    for (const CpuLinear* linear :
         {&block.q, &block.k, &block.v, &block.o, &block.gate, &block.up, &block.down}) {
      include(*linear, limits.max_step_tokens);
    }
  }
  include(weights.head(), limits.max_logits);
  return bytes;
}

struct WorkspacePart {
  FloatRows* rows;
  int64_t count;
  int64_t stride;

  int64_t size_bytes() const {
    return RoundUp(count * stride * int64_t{sizeof(float)}, kAlignment);
  }
};

// The matrices of `workspace` in the order of its memory; activations follow.
std::array<WorkspacePart, 11> PartsOf(Workspace& workspace, const ModelConfig& config,
                                      const kernels::KernelTable& kernels,
                                      const BackendLimits& limits, int num_threads) {
  const int64_t tokens = limits.max_step_tokens;
  const auto padded = [](int64_t cols) { return RoundUp(cols, kAlignment / sizeof(float)); };
  return {{
      {&workspace.hidden, tokens, padded(config.hidden_size)},
      // Holds the head's input too.
      {&workspace.normed, std::max<int64_t>(tokens, limits.max_logits), padded(config.hidden_size)},
      {&workspace.q, tokens, padded(config.q_size())},
      {&workspace.k, tokens, padded(config.kv_size())},
      {&workspace.v, tokens, padded(config.kv_size())},
      {&workspace.attention, tokens, padded(config.q_size())},
      {&workspace.gate, tokens, padded(config.intermediate_size)},
      {&workspace.up, tokens, padded(config.intermediate_size)},
      {&workspace.cos_sin, tokens, padded(config.head_dim)},
      {&workspace.attention_scratch, num_threads,
       padded(static_cast<int64_t>(kernels.attention_scratch_floats(Heads(config))))},
      {&workspace.logits, limits.max_logits, config.vocab_size},
  }};
}

// Half floats of a step's keys, and of its values, which a quantized cache needs.
int64_t StepHalves(const ModelConfig& config, const BackendLimits& limits, bool quantized_kv) {
  return quantized_kv ? int64_t{limits.max_step_tokens} * config.kv_size() : 0;
}

}  // namespace

int64_t Workspace::SizeBytes(const CpuWeights& weights, const kernels::KernelTable& kernels,
                             const BackendLimits& limits, bool quantized_kv, int num_threads) {
  Workspace workspace;
  int64_t bytes =
      RoundUp(static_cast<int64_t>(ActivationBytes(weights, kernels, limits)), kAlignment) +
      2 * StepHalves(weights.config, limits, quantized_kv) * int64_t{sizeof(uint16_t)};
  for (const WorkspacePart& part :
       PartsOf(workspace, weights.config, kernels, limits, num_threads)) {
    bytes += part.size_bytes();
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<Workspace>> Workspace::Allocate(const CpuWeights& weights,
                                                               const kernels::KernelTable& kernels,
                                                               const BackendLimits& limits,
                                                               bool quantized_kv, int num_threads) {
  const ModelConfig& config = weights.config;
  auto workspace = std::make_unique<Workspace>();
  ASSIGN_OR_RETURN(workspace->memory_, AlignedBuffer::Allocate(SizeBytes(weights, kernels, limits,
                                                                         quantized_kv, num_threads),
                                                               "the buffers of a step"));
  uint8_t* next = workspace->memory_.data();
  for (const WorkspacePart& part : PartsOf(*workspace, config, kernels, limits, num_threads)) {
    *part.rows = {reinterpret_cast<float*>(next), part.stride};
    next += part.size_bytes();
  }
  workspace->activations = next;
  next += RoundUp(static_cast<int64_t>(ActivationBytes(weights, kernels, limits)), kAlignment);
  workspace->step_keys = reinterpret_cast<uint16_t*>(next);
  workspace->step_values = workspace->step_keys + StepHalves(config, limits, quantized_kv);
  workspace->max_step_tokens = limits.max_step_tokens;
  workspace->closing.reserve(limits.max_step_tokens);
  workspace->carried.reserve(limits.max_sequences);
  workspace->tokens.reserve(limits.max_step_tokens);
  workspace->logit_rows.reserve(limits.max_logits);
  workspace->attention_units.reserve(limits.max_step_tokens * config.num_attention_heads);
  workspace->attention_ends.resize(num_threads);
  return workspace;
}

KernelOps::KernelOps(const CpuWeights& weights, const kernels::KernelTable& kernels,
                     const KvMemory& kv, Workspace& workspace, ThreadPool& pool, const Batch& batch)
    : weights_(weights),
      kernels_(kernels),
      kv_(kv),
      workspace_(workspace),
      pool_(pool),
      shape_(Heads(weights.config)),
      num_tokens_(SumTokens(batch)) {
  workspace_.tokens.clear();
  workspace_.logit_rows.clear();
  for (const BatchRun& run : batch) {
    const int count = static_cast<int>(run.tokens.size());
    const auto first = static_cast<int32_t>(workspace_.tokens.size());
    for (int i = 0; i < count; ++i) {
      if (i >= count - run.num_logits) {
        workspace_.logit_rows.push_back(static_cast<int32_t>(workspace_.tokens.size()));
      }
      workspace_.tokens.push_back({.id = run.tokens[i],
                                   .position = run.position + i,
                                   .pages = run.pages.data(),
                                   .slot = run.slot,
                                   .first = first});
    }
  }
  if (kv_.quantized()) PlanPages();
  PlanAttention();
}

FloatRows KernelOps::Embed(const CpuWeights& model) {
  const int half = shape_.head_dim / 2;
  const int64_t grain = Grain(weights_.config.hidden_size, kMinElements);
  pool_.ParallelFor(num_tokens_, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Workspace::Token& token = workspace_.tokens[t];
      kernels_.get_row(model.embedding.matrix, token.id, workspace_.hidden.row(t));
      float* cos_sin = workspace_.cos_sin.row(t);
      for (int i = 0; i < half; ++i) {
        // The angle is a float, as in the models' training code.
        const float angle = static_cast<float>(token.position) * model.rope_frequencies[i];
        cos_sin[i] = std::cos(angle);
        cos_sin[half + i] = std::sin(angle);
      }
    }
  });
  return workspace_.hidden;
}

KernelOps::Qkv KernelOps::ProjectQkv(int, const CpuBlock& block, FloatRows x) {
  const InputForm& form = block.q.input;
  NormAndQuantize(x, block.attention_norm, num_tokens_, form, [](int64_t i) { return i; });
  const Qkv qkv{workspace_.q, workspace_.k, workspace_.v};
  Multiply(workspace_.normed, num_tokens_, form, /*accumulate=*/false,
           {{&block.q, qkv.q}, {&block.k, qkv.k}, {&block.v, qkv.v}});

  const float eps = static_cast<float>(weights_.config.rms_norm_eps);
  const int64_t grain = Grain(weights_.config.q_size(), kMinElements);
  pool_.ParallelFor(num_tokens_, grain, [&](int64_t begin, int64_t end) {
    const auto turn = [&](float* heads, int num_heads, const std::vector<float>& norm, int64_t t) {
      for (int head = 0; head < num_heads && !norm.empty(); ++head) {
        float* values = heads + int64_t{head} * shape_.head_dim;
        kernels_.rms_norm(values, norm.data(), shape_.head_dim, eps, values);
      }
      kernels_.rope(heads, num_heads, shape_.head_dim, workspace_.cos_sin.row(t));
    };
    for (int64_t t = begin; t < end; ++t) {
      turn(qkv.q.row(t), shape_.num_heads, block.q_norm, t);
      turn(qkv.k.row(t), shape_.num_kv_heads, block.k_norm, t);
    }
  });
  return qkv;
}

FloatRows KernelOps::Attend(int layer, Qkv qkv) {
  if (kv_.quantized()) {
    AttendQuantized(layer, qkv);
  } else {
    AttendHalf(layer, qkv);
  }
  return workspace_.attention;
}

void KernelOps::AttendHalf(int layer, const Qkv& qkv) {
  const int64_t grain = Grain(2 * weights_.config.kv_size(), kMinElements);
  pool_.ParallelFor(num_tokens_, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const Workspace::Token& token = workspace_.tokens[t];
      kernels_.store_kv(LayerPages(layer, token.pages), shape_, token.position, qkv.k.row(t),
                        qkv.v.row(t));
    }
  });
  ForEachAttentionUnit(qkv, [&](int64_t token, const kernels::AttentionQuery& query,
                                float* scratch) {
    kernels_.attention(LayerPages(layer, workspace_.tokens[token].pages), shape_, query, scratch);
  });
}

void KernelOps::AttendQuantized(int layer, const Qkv& qkv) {
  const int64_t grain = Grain(2 * weights_.config.kv_size(), kMinElements);
  pool_.ParallelFor(num_tokens_, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.store_kv(OpenPage(layer, t), shape_, workspace_.tokens[t].position % kv_.page_tokens,
                        qkv.k.row(t), qkv.v.row(t));
    }
  });
  // Pages that are whole now, for the tokens behind them.
  const auto num_closing = static_cast<int64_t>(workspace_.closing.size());
  pool_.ParallelFor(num_closing * shape_.num_kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = workspace_.closing[i / shape_.num_kv_heads];
      const int head = static_cast<int>(i % shape_.num_kv_heads);
      kernels_.quantize_kv(QuantizedPages(layer, token), shape_,
                           workspace_.tokens[token].position / kv_.page_tokens, head, head + 1);
    }
  });
  ForEachAttentionUnit(
      qkv, [&](int64_t token, const kernels::AttentionQuery& query, float* scratch) {
        kernels_.attention_quantized(QuantizedPages(layer, token), shape_, query, scratch);
      });
  // The next step finds the open pages in their slots.
  const auto num_carried = static_cast<int64_t>(workspace_.carried.size());
  pool_.ParallelFor(num_carried, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) CarryOpenPage(layer, workspace_.carried[i]);
  });
}

template <typename AttendUnit>
void KernelOps::ForEachAttentionUnit(const Qkv& qkv, const AttendUnit& attend) {
  // Two products an element.
  int64_t positions = 0;
  for (const Workspace::Token& token : workspace_.tokens) positions += token.position + 1;
  const int64_t products = 2 * positions * shape_.num_heads * shape_.head_dim;
  const int num_threads = pool_.num_threads();
  const int64_t threads_grain = products < kMinProducts ? num_threads : 1;
  pool_.ParallelFor(num_threads, threads_grain, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      const int32_t first = thread == 0 ? 0 : workspace_.attention_ends[thread - 1];
      for (int32_t i = first; i < workspace_.attention_ends[thread]; ++i) {
        const Workspace::AttentionUnit& unit = workspace_.attention_units[i];
        attend(unit.first_token,
               {.queries = qkv.q.row(unit.first_token),
                .query_stride = qkv.q.stride,
                .first_position = workspace_.tokens[unit.first_token].position,
                .num_tokens = unit.num_tokens,
                .head_begin = unit.head_begin,
                .head_end = unit.head_end,
                .out = workspace_.attention.row(unit.first_token),
                .out_stride = workspace_.attention.stride},
               workspace_.attention_scratch.row(thread));
      }
    }
  });
}

FloatRows KernelOps::AddAttentionOutput(const CpuBlock& block, FloatRows residual,
                                        FloatRows attention) {
  Multiply(attention, num_tokens_, /*quantized=*/{}, /*accumulate=*/true, {{&block.o, residual}});
  return residual;
}

FloatRows KernelOps::GatedMlp(const CpuBlock& block, FloatRows x) {
  const InputForm& form = block.gate.input;
  NormAndQuantize(x, block.mlp_norm, num_tokens_, form, [](int64_t i) { return i; });
  Multiply(workspace_.normed, num_tokens_, form, /*accumulate=*/false,
           {{&block.gate, workspace_.gate}, {&block.up, workspace_.up}});
  const int size = weights_.config.intermediate_size;
  pool_.ParallelFor(num_tokens_, Grain(size, kMinElements), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      kernels_.silu_mul(workspace_.gate.row(t), workspace_.up.row(t), size, workspace_.gate.row(t));
    }
    // While the rows are in the cache.
    QuantizeRows(workspace_.gate, begin, end, size, block.down.input);
  });
  return workspace_.gate;
}

FloatRows KernelOps::AddMlpOutput(const CpuBlock& block, FloatRows residual, FloatRows mlp) {
  Multiply(mlp, num_tokens_, block.down.input, /*accumulate=*/true, {{&block.down, residual}});
  return residual;
}

FloatRows KernelOps::Head(const CpuWeights& model, FloatRows x) {
  const auto num_rows = static_cast<int64_t>(workspace_.logit_rows.size());
  if (num_rows == 0) return workspace_.logits;  // prefills that go on
  const InputForm& form = model.head().input;
  NormAndQuantize(x, model.final_norm, num_rows, form,
                  [&](int64_t i) { return int64_t{workspace_.logit_rows[i]}; });
  Multiply(workspace_.normed, num_rows, form, /*accumulate=*/false,
           {{&model.head(), workspace_.logits}});
  return workspace_.logits;
}

void KernelOps::PlanAttention() {
  std::vector<Workspace::AttentionUnit>& units = workspace_.attention_units;
  units.clear();
  const std::vector<Workspace::Token>& tokens = workspace_.tokens;
  const int num_threads = pool_.num_threads();
  // Heads that share a key/value head stay together unless there are too few for the threads.
  const int group = shape_.num_heads / shape_.num_kv_heads;
  const int heads = num_tokens_ * shape_.num_kv_heads >= num_threads ? group : 1;
  const auto cost = [&](const Workspace::AttentionUnit& unit) {
    // Reading a position costs about as much as one query's products with it.
    return int64_t{tokens[unit.first_token].position + unit.num_tokens} *
           (unit.num_tokens * (unit.head_end - unit.head_begin) + 1);
  };
  int64_t total = 0;
  for (int32_t t = 0; t < num_tokens_;) {
    int32_t count = 1;
    while (count < kAttentionTokens && t + count < num_tokens_ &&
           tokens[t + count].pages == tokens[t].pages &&
           tokens[t + count].position == tokens[t].position + count &&
           (!kv_.quantized() || tokens[t + count].position % kv_.page_tokens != 0)) {
      ++count;
    }
    for (int head = 0; head < shape_.num_heads; head += heads) {
      units.push_back({t, count, head, head + heads});
      total += cost(units.back());
    }
    t += count;
  }
  int64_t before = 0;  // cost of the units before `next`
  int32_t next = 0;
  const auto num_units = static_cast<int32_t>(units.size());
  for (int thread = 0; thread < num_threads; ++thread) {
    const int64_t target = total * (thread + 1) / num_threads;
    // A unit goes where the larger part of it belongs.
    while (next < num_units && before + cost(units[next]) / 2 < target) {
      before += cost(units[next++]);
    }
    workspace_.attention_ends[thread] = next;
  }
  workspace_.attention_ends[num_threads - 1] = num_units;
}

kernels::PagedKv KernelOps::LayerPages(int layer, const int32_t* pages) const {
  uint16_t* keys = kv_.keys(layer);
  return {.keys = keys,
          .values = keys + kv_.run_elements,
          .page_table = pages,
          .page_stride = kv_.page_bytes / int64_t{sizeof(uint16_t)},
          .page_tokens = kv_.page_tokens};
}

void KernelOps::PlanPages() {
  workspace_.closing.clear();
  workspace_.carried.clear();
  for (int32_t t = 0; t < num_tokens_; ++t) {
    const Workspace::Token& token = workspace_.tokens[t];
    const bool last = t + 1 == num_tokens_ || workspace_.tokens[t + 1].first != token.first;
    if (token.position % kv_.page_tokens == kv_.page_tokens - 1) {
      workspace_.closing.push_back(t);
    } else if (last && IsBehindFirstPage(t)) {
      workspace_.carried.push_back(t);
    }
  }
}

bool KernelOps::IsBehindFirstPage(int64_t token) const {
  const Workspace::Token& last = workspace_.tokens[token];
  return last.position / kv_.page_tokens !=
         workspace_.tokens[last.first].position / kv_.page_tokens;
}

kernels::PagedKv KernelOps::OpenPage(int layer, int64_t token) const {
  static constexpr int32_t kOnePage = 0;
  const Workspace::Token& at = workspace_.tokens[token];
  kernels::PagedKv page{.page_table = &kOnePage};
  if (IsBehindFirstPage(token)) {
    // The page begins in this step.
    const int64_t offset = (token - at.position % kv_.page_tokens) * shape_.head_dim;
    page.keys = workspace_.step_keys + offset;
    page.values = workspace_.step_values + offset;
    page.page_tokens = workspace_.max_step_tokens;
  } else {
    page.keys = kv_.slot_keys(at.slot, layer);
    page.values = page.keys + kv_.run_elements;
    page.page_tokens = kv_.page_tokens;
  }
  return page;
}

kernels::QuantizedKv KernelOps::QuantizedPages(int layer, int64_t token) const {
  return {.bits = kv_.bits,
          .pages = kv_.storage.data() + layer * kv_.layer_bytes,
          .page_table = workspace_.tokens[token].pages,
          .page_stride = kv_.page_bytes,
          .open = OpenPage(layer, token)};
}

void KernelOps::CarryOpenPage(int layer, int64_t token) {
  const Workspace::Token& last = workspace_.tokens[token];
  const kernels::PagedKv from = OpenPage(layer, token);
  uint16_t* keys = kv_.slot_keys(last.slot, layer);
  const int64_t count = int64_t{last.position % kv_.page_tokens + 1} * shape_.head_dim;
  for (int head = 0; head < shape_.num_kv_heads; ++head) {
    const int64_t source = int64_t{head} * from.page_tokens * shape_.head_dim;
    const int64_t target = int64_t{head} * kv_.page_tokens * shape_.head_dim;
    std::copy_n(from.keys + source, count, keys + target);
    std::copy_n(from.values + source, count, keys + kv_.run_elements + target);
  }
}

void KernelOps::QuantizeRows(FloatRows x, int64_t begin, int64_t end, int cols,
                             const InputForm& form) {
  if (form.is_float()) return;
  kernels_.quantize_activations(
      {.cols = cols, .group_size = form.group_size, .precision = form.precision}, x.data, x.stride,
      static_cast<int>(begin), static_cast<int>(end), workspace_.activations);
}

template <typename RowOf>
void KernelOps::NormAndQuantize(FloatRows x, const std::vector<float>& weight, int64_t num_rows,
                                const InputForm& form, RowOf row_of) {
  const float eps = static_cast<float>(weights_.config.rms_norm_eps);
  const int cols = weights_.config.hidden_size;
  pool_.ParallelFor(num_rows, Grain(cols, kMinElements), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.rms_norm(x.row(row_of(i)), weight.data(), cols, eps, workspace_.normed.row(i));
    }
    QuantizeRows(workspace_.normed, begin, end, cols, form);
  });
}

void KernelOps::Multiply(FloatRows x, int64_t num_rows, const InputForm& quantized, bool accumulate,
                         std::initializer_list<Product> products) {
  // Matrices that take the same input form share one region; as a rule that is all of them. Those
  // of the form that is there go first, as another one overwrites it.
  std::array<InputForm, 4> forms = {quantized};  // one, and one of each of three products
  int num_forms = 1;
  for (const Product& product : products) {
    const InputForm& form = product.linear->input;
    if (std::find(forms.begin(), forms.begin() + num_forms, form) == forms.begin() + num_forms) {
      forms[num_forms++] = form;
    }
  }
  for (const InputForm& form : absl::MakeConstSpan(forms.data(), num_forms)) {
    int64_t num_blocks = 0;
    int cols = 0;
    for (const Product& product : products) {
      if (product.linear->input != form) continue;
      cols = product.linear->matrix.cols;
      num_blocks += RoundUp(product.linear->matrix.rows, kernels::kRowBlock) / kernels::kRowBlock;
    }
    if (num_blocks == 0) continue;
    if (!form.is_float() && form != quantized) {
      pool_.ParallelFor(num_rows, Grain(cols, kMinElements), [&](int64_t begin, int64_t end) {
        QuantizeRows(x, begin, end, cols, form);
      });
    }
    const int64_t block_products = int64_t{kernels::kRowBlock} * cols * num_rows;
    const int64_t grain = Grain(block_products, kMinProducts);
    pool_.ParallelFor(num_blocks, grain, [&](int64_t begin, int64_t end) {
      int64_t first = 0;  // block of this product
      for (const Product& product : products) {
        if (product.linear->input != form) continue;
        const int rows = product.linear->matrix.rows;
        const int64_t count = RoundUp(rows, kernels::kRowBlock) / kernels::kRowBlock;
        const int64_t from = std::clamp<int64_t>(begin - first, 0, count) * kernels::kRowBlock;
        const int64_t to = std::clamp<int64_t>(end - first, 0, count) * kernels::kRowBlock;
        if (from < to) {
          MultiplyRows(product, x, num_rows, static_cast<int>(from),
                       static_cast<int>(std::min<int64_t>(to, rows)), accumulate);
        }
        first += count;
      }
    });
  }
}

void KernelOps::MultiplyRows(const Product& product, FloatRows x, int64_t num_rows, int row_begin,
                             int row_end, bool accumulate) {
  const CpuLinear& linear = *product.linear;
  if (!linear.input.is_float()) {
    kernels_.matmul(linear.matrix, workspace_.activations, linear.input.precision,
                    static_cast<int>(num_rows), row_begin, row_end, accumulate, product.y.data,
                    product.y.stride);
  } else {
    kernels_.matmul_dense(linear.matrix, x.data, x.stride, static_cast<int>(num_rows), row_begin,
                          row_end, accumulate, product.y.data, product.y.stride);
  }
  AddBias(kernels_, linear, row_begin, row_end, num_rows, product.y);
}

}  // namespace quern

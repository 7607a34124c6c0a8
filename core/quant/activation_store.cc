#include "core/quant/activation_store.h"

#include <algorithm>

namespace quern {

at::Tensor ToTokenTensor(const std::vector<std::vector<int32_t>>& sequences, int first_sequence,
                         int num_sequences, int num_tokens, at::Device device) {
  at::Tensor ids = at::empty({num_sequences, num_tokens}, at::kLong);
  int64_t* out = ids.data_ptr<int64_t>();
  for (int i = 0; i < num_sequences; ++i) {
    out = std::copy_n(sequences[first_sequence + i].begin(), num_tokens, out);
  }
  return ids.to(device);
}

void ActivationStore::Advance(const ModelConfig& config, const RotaryTables& rotary, int layer,
                              const TorchBlock& block, InputMoments* moments,
                              int64_t num_observed) {
  const at::NoGradGuard no_grad;
  // Enough tokens to keep the products large, few enough to keep their results in the cache.
  constexpr int64_t kStepTokens = 1024;
  const int64_t step = std::max<int64_t>(1, kStepTokens / num_tokens());
  for (int64_t begin = 0; begin < num_sequences();) {
    const bool observed = moments != nullptr && begin < num_observed;
    const int64_t end = std::min(begin + step, observed ? num_observed : num_sequences());
    TorchOps ops(config, rotary, {}, observed ? moments : nullptr);
    at::Tensor rows = Rows(begin, end - begin);
    rows.copy_(RunBlock(ops, layer, block, rows));
    begin = end;
  }
}

}  // namespace quern

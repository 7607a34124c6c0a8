#include "core/quant/activation_store.h"

#include <algorithm>

#include "core/quant/exceptions.h"

namespace quern {
namespace {

// Enough tokens to keep the products large, few enough to keep their results in the cache.
constexpr int64_t kStepTokens = 1024;

absl::Span<char> Bytes(const at::Tensor& tensor) {
  return {static_cast<char*>(tensor.data_ptr()), static_cast<size_t>(tensor.nbytes())};
}

}  // namespace

at::Tensor ToTokenTensor(const std::vector<std::vector<int32_t>>& sequences, int first_sequence,
                         int num_sequences, int num_tokens, at::Device device) {
  at::Tensor ids = at::empty({num_sequences, num_tokens}, at::kLong);
  int64_t* out = ids.data_ptr<int64_t>();
  for (int i = 0; i < num_sequences; ++i) {
    out = std::copy_n(sequences[first_sequence + i].begin(), num_tokens, out);
  }
  return ids.to(device);
}

ActivationStore::ActivationStore(std::vector<int64_t> shape, at::Device device,
                                 ActivationSpace* space)
    : shape_(std::move(shape)),
      device_(device),
      type_(space == nullptr ? at::kFloat : space->type_),
      space_(space) {
  const int64_t bytes = shape_[0] * row_bytes();
  if (space_ != nullptr && bytes > space_->memory_bytes_) {
    file_ =
        std::make_unique<ScratchFile>(ValueOrThrow(ScratchFile::Create(space_->directory_, bytes)));
    return;
  }
  if (space_ != nullptr) {
    space_->memory_bytes_ -= bytes;
    lease_ = {space_, [bytes](void* space) {
                static_cast<ActivationSpace*>(space)->memory_bytes_ += bytes;
              }};
  }
  states_ = at::empty(shape_, at::TensorOptions(device_).dtype(type_));
}

ActivationStore::ActivationStore(const at::Tensor& embedding, const at::Tensor& token_ids,
                                 ActivationSpace* space)
    : ActivationStore({token_ids.size(0), token_ids.size(1), embedding.size(1)}, embedding.device(),
                      space) {
  const int64_t step = RowsAtOnce();
  for (int64_t begin = 0; begin < num_sequences(); begin += step) {
    const int64_t count = std::min(step, num_sequences() - begin);
    Store(begin, at::embedding(embedding, token_ids.narrow(0, begin, count)));
  }
}

int64_t ActivationStore::row_bytes() const {
  return shape_[1] * shape_[2] * static_cast<int64_t>(at::elementSize(type_));
}

int64_t ActivationStore::RowsAtOnce() const {
  return std::max<int64_t>(1, kStepTokens / num_tokens());
}

at::Tensor ActivationStore::Rows(int64_t begin, int64_t count) const {
  if (file_ == nullptr) return states_.narrow(0, begin, count).to(at::kFloat);
  const at::Tensor rows = at::empty({count, shape_[1], shape_[2]}, type_);
  OkOrThrow(file_->Read(begin * row_bytes(), Bytes(rows)));
  // Passes go from the first sequence to the last, and begin anew.
  const int64_t next = begin + count < num_sequences() ? begin + count : 0;
  file_->Prefetch(next * row_bytes(), count * row_bytes());
  return rows.to(device_, at::kFloat);
}

void ActivationStore::Store(int64_t begin, const at::Tensor& states) {
  if (file_ == nullptr) {
    states_.narrow(0, begin, states.size(0)).copy_(states);
  } else {
    OkOrThrow(file_->Write(begin * row_bytes(), Bytes(states.to(at::kCPU, type_).contiguous())));
  }
}

ActivationStore ActivationStore::Copy() const {
  ActivationStore copy(shape_, device_, space_);
  if (file_ == nullptr && copy.file_ == nullptr) {
    copy.states_.copy_(states_);
    return copy;
  }
  const int64_t step = RowsAtOnce();
  for (int64_t begin = 0; begin < num_sequences(); begin += step) {
    copy.Store(begin, Rows(begin, std::min(step, num_sequences() - begin)));
  }
  return copy;
}

void ActivationStore::Advance(const ModelConfig& config, const RotaryTables& rotary, int layer,
                              const TorchBlock& block, InputMoments* moments,
                              int64_t num_observed) {
  const at::NoGradGuard no_grad;
  const int64_t step = RowsAtOnce();
  for (int64_t begin = 0; begin < num_sequences();) {
    const bool observed = moments != nullptr && begin < num_observed;
    const int64_t end = std::min(begin + step, observed ? num_observed : num_sequences());
    TorchOps ops(config, rotary, {}, observed ? moments : nullptr);
    Store(begin, RunBlock(ops, layer, block, Rows(begin, end - begin)));
    begin = end;
  }
}

void ActivationStore::Observe(const ModelConfig& config, const RotaryTables& rotary, int layer,
                              const TorchBlock& block, InputMoments& moments) const {
  const at::NoGradGuard no_grad;
  const int64_t step = RowsAtOnce();
  for (int64_t begin = 0; begin < num_sequences(); begin += step) {
    TorchOps ops(config, rotary, {}, &moments);
    RunBlock(ops, layer, block, Rows(begin, std::min(step, num_sequences() - begin)));
  }
}

}  // namespace quern

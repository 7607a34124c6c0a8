#ifndef QUERN_TESTS_CORE_ENGINE_ENGINE_TEST_UTIL_H_
#define QUERN_TESTS_CORE_ENGINE_ENGINE_TEST_UTIL_H_

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/log.h"
#include "core/base/mutex.h"
#include "core/engine/engine.h"
#include "core/engine/event.h"
#include "core/model/tensor_names.h"
#include "tests/support/eventually.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {

// Time that stands still until the test moves it.
class ManualClock final : public Clock {
 public:
  absl::Time Now() override { return absl::FromUnixNanos(nanos_.load()); }
  void Advance(absl::Duration by) { nanos_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> nanos_{absl::ToUnixNanos(absl::FromUnixSeconds(1700000000))};
};

// The tiny model in memory, dense.
class TinySource final : public ModelSource {
 public:
  explicit TinySource(const TinyModelOptions& options)
      : config_(TinyModelConfig(options)),
        weights(TinyModelWeights(options)),
        tokenizer_json_(TinyTokenizerJson(options.vocab_size)),
        chat_template_(TinyChatTemplate()) {}

  const ModelConfig& config() const override { return config_; }
  const std::string& tokenizer_json() const override { return tokenizer_json_; }
  const std::string& chat_template() const override { return chat_template_; }
  absl::StatusOr<MatrixView> Matrix(absl::string_view name) const override {
    const auto it = weights.find(std::string(name));
    if (it == weights.end()) return absl::NotFoundError(name);
    return MatrixView(DenseMatrix{.rows = static_cast<int>(it->second.shape[0]),
                                  .cols = static_cast<int>(it->second.shape[1]),
                                  .data = it->second.values.data()});
  }
  absl::StatusOr<std::vector<float>> Vector(absl::string_view name) const override {
    const auto it = weights.find(std::string(name));
    if (it == weights.end()) return absl::NotFoundError(name);
    return it->second.values;
  }

 private:
  ModelConfig config_;

 public:
  // For tests that damage them.
  std::map<std::string, TinyTensor> weights;
  void drop_tokenizer() { tokenizer_json_.clear(); }

 private:
  std::string tokenizer_json_;
  std::string chat_template_;
};

// The tiny model rounded to `bits`, its embedding to 8; with `mixed_groups` the matrices of one
// input differ in group size.
inline std::unique_ptr<ModelSource> PackedTinySource(const TinyModelOptions& options, int bits,
                                                     bool symmetric = false,
                                                     bool mixed_groups = false) {
  auto model = std::make_shared<PackedModel>();
  model->config = TinyModelConfig(options);
  model->tokenizer_json = TinyTokenizerJson(options.vocab_size);
  model->chat_template = TinyChatTemplate();
  for (const auto& [name, tensor] : TinyModelWeights(options)) {
    if (tensor.shape.size() == 1) {
      model->vectors[name] = tensor.values;
      continue;
    }
    const bool block = name.find("layers") != std::string::npos;
    const bool odd =
        name.find("k_proj") != std::string::npos || name.find("up_proj") != std::string::npos;
    auto packed = RoundToNearest(tensor.values, static_cast<int>(tensor.shape[0]),
                                 static_cast<int>(tensor.shape[1]), block ? bits : 8,
                                 mixed_groups && odd ? 32 : 64, symmetric);
    CHECK(packed.ok()) << packed.status();
    model->matrices[name] = *std::move(packed);
  }
  return MakeModelSource(std::shared_ptr<const PackedModel>(std::move(model)));
}

// Keeps what a request gives. The hook runs on the engine thread after each OnTokens.
class CollectingSink final : public TokenSink {
 public:
  using Hook = std::function<void(CollectingSink&)>;
  explicit CollectingSink(Hook on_tokens = {}, Hook on_end = {})
      : on_tokens_(std::move(on_tokens)), on_end_(std::move(on_end)) {}

  void OnTokens(absl::Span<const int32_t> ids, absl::string_view text) override {
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    text_.append(text.data(), text.size());
    if (on_tokens_) on_tokens_(*this);
  }
  void OnDiscarded(int64_t num_tokens) override { discarded_tokens_ = num_tokens; }
  void OnEnd(absl::StatusOr<GenerationResult> result) override {
    CHECK(++num_ends_ == 1) << "OnEnd was called twice";
    result_ = std::move(result);
    if (on_end_) on_end_(*this);
    done_.Notify();
  }
  bool cancelled() const override { return cancelled_.load(); }

  void Cancel() { cancelled_.store(true); }
  const absl::StatusOr<GenerationResult>& Wait() {
    done_.Wait();
    return result_;
  }
  // On the engine thread, or after Wait.
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::string& text() const { return text_; }
  int64_t discarded_tokens() const { return discarded_tokens_; }
  const absl::StatusOr<GenerationResult>& result() const { return result_; }

 private:
  const Hook on_tokens_;
  const Hook on_end_;
  std::vector<int32_t> ids_;
  std::string text_;
  absl::StatusOr<GenerationResult> result_ = absl::UnknownError("not ended");
  int64_t discarded_tokens_ = 0;
  int num_ends_ = 0;
  std::atomic<bool> cancelled_{false};
  Event done_;
};

// Submits, and fails the test when it is refused.
inline std::shared_ptr<CollectingSink> Start(Engine& engine, ModelHandle model,
                                             GenerationRequest request,
                                             CollectingSink::Hook on_tokens = {},
                                             CollectingSink::Hook on_end = {}) {
  auto sink = std::make_shared<CollectingSink>(std::move(on_tokens), std::move(on_end));
  const absl::Status status = engine.Submit(model, std::move(request), sink);
  EXPECT_OK(status);
  if (!status.ok()) sink->OnEnd(status);
  return sink;
}

// Prompt ids that differ by `seed`.
inline std::vector<int32_t> Prompt(int length, int seed, int vocab_size = 300) {
  std::vector<int32_t> ids(length);
  uint32_t state = 12345u + 977u * static_cast<uint32_t>(seed);
  for (int32_t& id : ids) {
    state = state * 1664525u + 1013904223u;
    id = static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(vocab_size));
  }
  return ids;
}

// Temperature 1 with a seed, going on through end-of-text tokens.
inline GenerationRequest Sampled(std::vector<int32_t> prompt, int max_output_tokens,
                                 uint64_t seed) {
  GenerationRequest request{.prompt = std::move(prompt)};
  request.sampling.temperature = 1;
  request.sampling.seed = seed;
  request.max_output_tokens = max_output_tokens;
  request.ignore_end_of_text = true;
  return request;
}

inline GenerationRequest Greedy(std::vector<int32_t> prompt, int max_output_tokens) {
  GenerationRequest request{.prompt = std::move(prompt)};
  request.max_output_tokens = max_output_tokens;
  request.ignore_end_of_text = true;
  return request;
}

}  // namespace quern

#endif  // QUERN_TESTS_CORE_ENGINE_ENGINE_TEST_UTIL_H_

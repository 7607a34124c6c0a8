// The engine against Hugging Face transformers, on every tiny model of tests/oracle: the judge of
// the graph, which training and serving share.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/engine.h"
#include "core/safetensors/safetensors.h"
#include "kernels/kernels.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

std::string GoldenDirectory() {
  return std::string(std::getenv("QUERN_SOURCE_DIR")) + "/tests/testdata/golden_models";
}

template <typename T>
std::vector<T> Values(const TensorView& tensor) {
  std::vector<T> values(tensor.num_elements());
  std::memcpy(values.data(), tensor.data, values.size() * sizeof(T));
  return values;
}

class GoldenLogitsTest : public testing::TestWithParam<const kernels::KernelTable*> {};

TEST_P(GoldenLogitsTest, EngineGivesTheLogitsOfTransformers) {
  ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(GoldenDirectory()));
  ASSERT_GE(names.size(), 10u);
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({.num_threads = 2,
                                                          .page_tokens = 4,
                                                          .kv_cache_bytes = 1 << 22,
                                                          .max_step_tokens = 7,
                                                          .max_sequences = 2,
                                                          .kernels = GetParam()->name}));
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    const std::string directory = GoldenDirectory() + "/" + name;
    ASSERT_OK_AND_ASSIGN(std::shared_ptr<const Checkpoint> checkpoint, OpenCheckpoint(directory));
    ASSERT_OK_AND_ASSIGN(const SafetensorsFile golden,
                         SafetensorsFile::Open(directory + "/logits.safetensors"));
    const auto tokens = Values<int32_t>(golden.tensors().at("tokens"));
    const auto wanted = Values<float>(golden.tensors().at("logits"));
    ASSERT_OK_AND_ASSIGN(const ModelHandle model,
                         engine->Load(*MakeModelSource(std::move(checkpoint))));
    float largest = 0;
    for (const float value : wanted) largest = std::max(largest, std::abs(value));
    // Keys and values are kept as half floats, each off by up to 2^-11 of itself, in two blocks;
    // everything else is F32 in another order of sums. A wrong graph is off by a tenth and more.
    const float tolerance = largest / 1024;
    float worst = 0;
    ASSERT_OK(engine->Score(model, tokens, [&](int position, absl::Span<const float> logits) {
      ASSERT_EQ(logits.size() * tokens.size(), wanted.size());
      for (size_t i = 0; i < logits.size(); ++i) {
        worst = std::max(worst, std::abs(logits[i] - wanted[position * logits.size() + i]));
      }
    }));
    EXPECT_LE(worst, tolerance) << "largest logit " << largest;
    RecordProperty(name, std::to_string(worst / largest));
    EXPECT_OK(engine->Unload(model));
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenLogitsTest, testing::ValuesIn(kernels::AvailableKernels()),
                         [](const auto& info) { return std::string(info.param->name); });

}  // namespace
}  // namespace quern

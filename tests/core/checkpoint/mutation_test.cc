// Seeded mutations of small valid inputs: opening gives an error or a whole checkpoint, whose every
// tensor can be read. Meant for the sanitizers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>

#include "core/checkpoint/checkpoint.h"
#include "core/model/tensor_names.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

constexpr int kMutations = 2000;

// Flips bits, sets bytes, cuts, inserts; mostly in the first `focus` bytes.
std::string Mutate(std::string bytes, size_t focus, std::mt19937& random) {
  const int num_changes = 1 + static_cast<int>(random() % 3);
  for (int i = 0; i < num_changes && !bytes.empty(); ++i) {
    const size_t range = random() % 10 == 0 ? bytes.size() : std::min(bytes.size(), focus);
    const size_t at = random() % range;
    switch (random() % 8) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes.insert(at, 1, static_cast<char>(random()));
        break;
      case 2:
        bytes[at] = '\xff';
        break;
      case 3:
      case 4:
        bytes[at] = static_cast<char>(random());
        break;
      default:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
    }
  }
  return bytes;
}

// Reads all of a checkpoint. Returns whether it opened.
bool ReadWhole(const std::string& path) {
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = OpenCheckpoint(path);
  if (!checkpoint.ok()) {
    EXPECT_THAT(checkpoint.status().code(),
                testing::AnyOf(absl::StatusCode::kDataLoss, absl::StatusCode::kInvalidArgument,
                               absl::StatusCode::kNotFound))
        << checkpoint.status();
    EXPECT_LT(checkpoint.status().message().size(), 2000u);
    return false;
  }
  EXPECT_OK((*checkpoint)->config().Validate());
  [[maybe_unused]] volatile uint8_t touched_by_sanitizer = 0;
  for (const TensorSpec& spec : ModelTensors((*checkpoint)->config())) {
    const absl::StatusOr<TensorView> view = (*checkpoint)->Tensor(spec.name);
    EXPECT_OK(view.status());
    if (!view.ok()) continue;
    const auto* bytes = static_cast<const uint8_t*>(view->data);
    for (size_t i = 0; i < view->size_bytes; i += 61) touched_by_sanitizer = bytes[i];
    touched_by_sanitizer = bytes[view->size_bytes - 1];
  }
  return true;
}

TinyModelOptions Small() {
  TinyModelOptions options;
  options.num_hidden_layers = 1;
  options.hidden_size = 32;
  options.intermediate_size = 32;
  options.num_attention_heads = 2;
  options.num_key_value_heads = 1;
  return options;
}

TEST(MutationTest, Gguf) {
  TempDirectory directory;
  const std::string path = directory.Path("m.gguf");
  std::mt19937 random(11);
  ASSERT_OK(WriteTinyGguf(path, Small(), TinyGgufType::kQ8_0));
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(path, 1 << 24));
  int num_valid = 0;
  for (int i = 0; i < kMutations; ++i) {
    // Metadata, vocabulary and tensor table are the first 9 kB.
    OverwriteFile(path, Mutate(good, 9000, random));
    num_valid += ReadWhole(path);
  }
  EXPECT_GT(num_valid, 0);
  EXPECT_LT(num_valid, kMutations);
}

class HfMutationTest : public testing::TestWithParam<const char*> {};

TEST_P(HfMutationTest, DirectoryFile) {
  TempDirectory directory;
  TinyModelOptions options = Small();
  options.num_shards = 2;
  ASSERT_OK(WriteTinyCheckpoint(directory.path(), options));
  const std::string path = directory.Path(GetParam());
  std::mt19937 random(13);
  ASSERT_OK_AND_ASSIGN(const std::string good, ReadFile(path, 1 << 24));
  int num_valid = 0;
  for (int i = 0; i < kMutations; ++i) {
    OverwriteFile(path, Mutate(good, 1500, random));
    num_valid += ReadWhole(directory.path());
  }
  EXPECT_LT(num_valid, kMutations);
}

INSTANTIATE_TEST_SUITE_P(All, HfMutationTest,
                         testing::Values("config.json", "generation_config.json",
                                         "model.safetensors.index.json",
                                         "model-00001-of-00002.safetensors",
                                         "tokenizer_config.json"));

}  // namespace
}  // namespace quern

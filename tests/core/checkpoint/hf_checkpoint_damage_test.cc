// Bad checkpoint directories: a code and the reason, no crash.

#include <absl/strings/str_replace.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/checkpoint/checkpoint.h"
#include "core/model/tensor_names.h"
#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

constexpr char kFirst[] = "model-00001-of-00002.safetensors";
constexpr char kSecond[] = "model-00002-of-00002.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kNorm[] = "model.norm.weight";

// A copy of a good checkpoint in two shards, to be damaged.
class Files {
 public:
  explicit Files(const std::string& good) { std::filesystem::copy(good, directory_.path()); }
  const std::string& path() const { return directory_.path(); }
  std::string Path(const std::string& name) const { return directory_.Path(name); }
  std::string Read(const std::string& name) const { return *ReadFile(Path(name), 1 << 26); }
  void Write(const std::string& name, const std::string& bytes) {
    OverwriteFile(Path(name), bytes);
  }
  void Remove(const std::string& name) { EXPECT_OK(RemoveTree(Path(name))); }
  void Replace(const std::string& name, const std::string& from, const std::string& to) {
    const std::string text = Read(name);
    ASSERT_THAT(text, HasSubstr(from));
    Write(name, absl::StrReplaceAll(text, {{from, to}}));
  }
  // Changes the tensors of a shard.
  void Change(const std::string& name,
              const std::function<void(std::map<std::string, TensorView>&)>& change) {
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(Path(name));
    ASSERT_OK(file.status());
    std::map<std::string, TensorView> tensors = file->tensors();
    change(tensors);
    EXPECT_OK(WriteSafetensors(Path(name), tensors, {}));
  }

 private:
  TempDirectory directory_;
};

struct HfDamage {
  std::string name;
  std::function<void(Files&)> damage;
  absl::StatusCode code;
  std::string message;
};

void PrintTo(const HfDamage& value, std::ostream* out) { *out << value.name; }

const float kOnes[64] = {1, 1, 1, 1};

const HfDamage kFileDamages[] = {
    {"NoConfig", [](Files& f) { f.Remove("config.json"); }, kNotFound, "config.json: no such file"},
    {"ConfigEmpty", [](Files& f) { f.Write("config.json", ""); }, kInvalid, "not valid JSON"},
    {"ConfigDeep", [](Files& f) { f.Write("config.json", std::string(100000, '[')); }, kInvalid,
     "nested deeper"},
    {"ConfigDuplicateKey",
     [](Files& f) { f.Replace("config.json", "{\n", "{\n\"head_dim\": 16,\n"); }, kInvalid,
     "\"head_dim\" occurs twice"},
    {"ConfigNan", [](Files& f) { f.Replace("config.json", "10000.0", "NaN"); }, kInvalid,
     "not valid JSON"},
    {"Config1e400", [](Files& f) { f.Replace("config.json", "10000.0", "1e400"); }, kInvalid,
     "config.json"},
    {"ConfigTooLarge", [](Files& f) { f.Write("config.json", "{}" + std::string(1 << 20, ' ')); },
     kInvalid, "at most 1048576 are read"},
    {"ConfigADirectory",
     [](Files& f) {
       f.Remove("config.json");
       EXPECT_EQ(mkdir(f.Path("config.json").c_str(), 0700), 0);
     },
     absl::StatusCode::kFailedPrecondition, "not a regular file"},
    {"ConfigAFifo",
     [](Files& f) {
       f.Remove("config.json");
       EXPECT_EQ(mkfifo(f.Path("config.json").c_str(), 0600), 0);
     },
     absl::StatusCode::kFailedPrecondition, "not a regular file"},
    {"VocabularyOtherThanEmbedding",
     [](Files& f) { f.Replace("config.json", "\"vocab_size\": 300", "\"vocab_size\": 301"); },
     kDataLoss, "found shape [300, 64], config.json implies [301, 64]"},
    {"LayersTooMany",
     [](Files& f) {
       f.Replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
     },
     kDataLoss, "model.layers.2.input_layernorm.weight is missing"},
    {"LayersTooFew",
     [](Files& f) {
       f.Replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
     },
     kInvalid, "\"model.layers.1."},
    {"TiedAgainstTheWeights",
     [](Files& f) {
       f.Replace("config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
     },
     kInvalid, "lm_head.weight differs"},
    {"GenerationEosOutside",
     [](Files& f) { f.Write("generation_config.json", R"({"eos_token_id":[2,300]})"); }, kInvalid,
     "generation_config.json: eos_token_id"},
    {"GenerationBroken", [](Files& f) { f.Write("generation_config.json", "{"); }, kInvalid,
     "generation_config.json: not valid JSON"},
    {"TokenizerTooLarge",
     [](Files& f) {
       f.Write("tokenizer.json", "");
       EXPECT_EQ(truncate(f.Path("tokenizer.json").c_str(), (64 << 20) + 1), 0);
     },
     kInvalid, "tokenizer.json: 67108865 bytes"},
    {"TokenizerConfigBroken", [](Files& f) { f.Write("tokenizer_config.json", "[]"); }, kInvalid,
     "tokenizer_config.json: found an array"},
    {"TemplateANumber",
     [](Files& f) { f.Write("tokenizer_config.json", R"({"chat_template":1})"); }, kInvalid,
     "chat_template: found 1"},
    {"TemplateUnnamed",
     [](Files& f) { f.Write("tokenizer_config.json", R"({"chat_template":[{"template":"x"}]})"); },
     kInvalid, "name: found nothing"},
    {"TemplateTooLarge",
     [](Files& f) { f.Write("chat_template.jinja", std::string((1 << 20) + 1, 'x')); }, kInvalid,
     "chat_template.jinja: 1048577 bytes"},
    {"TemplateNotUtf8", [](Files& f) { f.Write("chat_template.jinja", "\xff"); }, kInvalid,
     "not UTF-8"},
};

const HfDamage kShardDamages[] = {
    {"NoWeights", [](Files& f) { f.Remove(kIndex); }, kNotFound,
     "found neither model.safetensors nor model.safetensors.index.json"},
    {"ShardMissing", [](Files& f) { f.Remove(kSecond); }, kNotFound, kSecond},
    {"ShardTruncated", [](Files& f) { EXPECT_EQ(truncate(f.Path(kSecond).c_str(), 5000), 0); },
     kDataLoss, "(truncated)"},
    {"ShardAnotherFormat", [](Files& f) { f.Write(kSecond, "\x80\x02pickle"); }, kDataLoss,
     "not a safetensors file"},
    {"ShardAFifo",
     [](Files& f) {
       f.Remove(kSecond);
       EXPECT_EQ(mkfifo(f.Path(kSecond).c_str(), 0600), 0);
     },
     absl::StatusCode::kFailedPrecondition, "not a regular file"},
    {"IndexBroken", [](Files& f) { f.Write(kIndex, "{"); }, kInvalid, "not valid JSON"},
    {"IndexDeep", [](Files& f) { f.Write(kIndex, R"({"weight_map":{"a":{"b":{}}}})"); }, kInvalid,
     "nested deeper"},
    {"IndexWithoutMap", [](Files& f) { f.Write(kIndex, "{}"); }, kInvalid, "weight_map"},
    {"IndexMapAList", [](Files& f) { f.Write(kIndex, R"({"weight_map":[]})"); }, kInvalid,
     "weight_map: found an array"},
    {"IndexMapEmpty", [](Files& f) { f.Write(kIndex, R"({"weight_map":{}})"); }, kDataLoss,
     "model.embed_tokens.weight is missing"},
    {"IndexNamesAParent", [](Files& f) { f.Replace(kIndex, kFirst, "../x.safetensors"); }, kInvalid,
     "found \"../x.safetensors\""},
    {"IndexNamesAParentOfTheRightLength",
     [](Files& f) { f.Replace(kIndex, kFirst, "../el-00001-of-00002.safetensors"); }, kInvalid,
     "wanted model-NNNNN-of-NNNNN.safetensors"},
    {"IndexNamesAnAbsolutePath", [](Files& f) { f.Replace(kIndex, kFirst, "/model.safetensors"); },
     kInvalid, "found \"/model.safetensors\""},
    {"IndexNamesANumber", [](Files& f) { f.Write(kIndex, R"({"weight_map":{"a":1}})"); }, kInvalid,
     "found 1"},
    {"IndexNamesAPickle", [](Files& f) { f.Replace(kIndex, ".safetensors\"", ".bin\""); }, kInvalid,
     ".bin"},
    {"IndexCountsDiffer",
     [](Files& f) { f.Replace(kIndex, kSecond, "model-00002-of-00003.safetensors"); }, kInvalid,
     "of one N"},
    {"IndexNumberZero",
     [](Files& f) { f.Replace(kIndex, kFirst, "model-00000-of-00002.safetensors"); }, kInvalid,
     "numbers 1 to N"},
    {"IndexNumberAboveCount",
     [](Files& f) { f.Replace(kIndex, kFirst, "model-00003-of-00002.safetensors"); }, kInvalid,
     "numbers 1 to N"},
    {"IndexTensorTwice",
     [](Files& f) { f.Replace(kIndex, "\"lm_head.weight\"", "\"model.norm.weight\""); }, kInvalid,
     "\"model.norm.weight\" occurs twice"},
    {"IndexPlacesATensorElsewhere",
     [](Files& f) {
       Json index = Json::parse(f.Read(kIndex));
       index["weight_map"][kNorm] = index["weight_map"][kNorm] == kFirst ? kSecond : kFirst;
       f.Write(kIndex, index.dump());
     },
     kDataLoss, "tensor \"model.norm.weight\" is missing; model.safetensors.index.json places it"},
    {"IndexLacksATensor",
     [](Files& f) {
       Json index = Json::parse(f.Read(kIndex));
       index["weight_map"].erase(kNorm);
       f.Write(kIndex, index.dump());
     },
     kDataLoss, "is in a shard but not in weight_map"},
    {"TensorInTwoShards",
     [](Files& f) {
       for (const char* shard : {kFirst, kSecond}) {
         f.Change(shard, [](auto& tensors) { tensors[kNorm] = {DType::kF32, {64}, kOnes, 256}; });
       }
     },
     kDataLoss, "is in another shard already"},
    {"TensorOfAnotherType",
     [](Files& f) {
       f.Change(kSecond, [](auto& tensors) { tensors[kNorm] = {DType::kI32, {64}, kOnes, 256}; });
     },
     kInvalid, "dtype I32, supported: F32, F16, BF16"},
    {"TensorOfAnotherShape",
     [](Files& f) {
       f.Change(kSecond, [](auto& tensors) { tensors[kNorm] = {DType::kF32, {63}, kOnes, 252}; });
     },
     kDataLoss, "model.norm.weight: found shape [63], config.json implies [64]"},
    {"BiasThatTheConfigDenies",
     [](Files& f) {
       f.Remove(kIndex);
       absl::StatusOr<SafetensorsFile> first = SafetensorsFile::Open(f.Path(kFirst));
       absl::StatusOr<SafetensorsFile> second = SafetensorsFile::Open(f.Path(kSecond));
       ASSERT_OK(first.status());
       ASSERT_OK(second.status());
       std::map<std::string, TensorView> all = first->tensors();
       all.insert(second->tensors().begin(), second->tensors().end());
       all["model.layers.0.self_attn.q_proj.bias"] = {DType::kF32, {64}, kOnes, 256};
       EXPECT_OK(WriteSafetensors(f.Path("model.safetensors"), all, {}));
     },
     kInvalid, "\"model.layers.0.self_attn.q_proj.bias\" is no part of the llama model"},
};

class HfCheckpointDamageTest : public testing::TestWithParam<HfDamage> {
 protected:
  static void SetUpTestSuite() {
    good_ = std::make_unique<TempDirectory>();
    TinyModelOptions options;
    options.num_shards = 2;
    options.tie_word_embeddings = false;
    ASSERT_OK(WriteTinyCheckpoint(good_->path(), options));
  }
  static void TearDownTestSuite() { good_.reset(); }

  static std::unique_ptr<TempDirectory> good_;
};

std::unique_ptr<TempDirectory> HfCheckpointDamageTest::good_;

TEST_P(HfCheckpointDamageTest, IsRefusedWithTheReason) {
  Files files(good_->path());
  ASSERT_OK(OpenCheckpoint(files.path()).status());
  GetParam().damage(files);
  EXPECT_THAT(OpenCheckpoint(files.path()),
              StatusIs(GetParam().code, HasSubstr(GetParam().message)));
}

constexpr auto kHfNameOf = [](const testing::TestParamInfo<HfDamage>& info) {
  return info.param.name;
};
INSTANTIATE_TEST_SUITE_P(Files, HfCheckpointDamageTest, testing::ValuesIn(kFileDamages), kHfNameOf);
INSTANTIATE_TEST_SUITE_P(Shards, HfCheckpointDamageTest, testing::ValuesIn(kShardDamages),
                         kHfNameOf);

TEST(OpenCheckpointTest, ThePathSaysWhatItIs) {
  TempDirectory directory;
  EXPECT_THAT(OpenCheckpoint(directory.Path("none")), StatusIs(kNotFound, HasSubstr("none")));
  EXPECT_THAT(OpenCheckpoint(directory.Path("none.gguf")), StatusIs(kNotFound, HasSubstr("none")));
  EXPECT_THAT(OpenCheckpoint(""), StatusIs(kInvalid, HasSubstr("empty")));
  EXPECT_THAT(OpenCheckpoint(absl::string_view("a\0b", 3)), StatusIs(kInvalid, HasSubstr("NUL")));
  OverwriteFile(directory.Path("model.bin"), "x");
  EXPECT_THAT(OpenCheckpoint(directory.Path("model.bin")),
              StatusIs(kInvalid, HasSubstr("ends in .gguf")));
  EXPECT_THAT(ReadCheckpointConfig(directory.path()),
              StatusIs(kNotFound, HasSubstr("config.json")));
}

}  // namespace
}  // namespace quern

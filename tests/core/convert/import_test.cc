#include "core/convert/import.h"

#include <cstring>
#include <functional>

#include "core/base/half.h"
#include "core/convert/export.h"
#include "core/convert/gptq.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/artifact/fixture.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

// The tensors of a checkpoint's file, to be changed and written again.
struct Tensors {
  struct Entry {
    DType dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  std::map<std::string, Entry> entries;

  explicit Tensors(const std::string& path) {
    const SafetensorsFile file = SafetensorsFile::Open(path).value();
    for (const auto& [name, view] : file.tensors()) {
      entries[name] = {view.dtype, view.shape,
                       std::string(static_cast<const char*>(view.data), view.size_bytes)};
    }
  }
  void Write(const std::string& path) const {
    std::map<std::string, TensorView> views;
    for (const auto& [name, entry] : entries) {
      views[name] = {entry.dtype, entry.shape, entry.bytes.data(), entry.bytes.size()};
    }
    ASSERT_OK(WriteSafetensors(path, views, {{"format", "pt"}}));
  }
  template <typename T>
  std::vector<T> Values(const std::string& name) const {
    const std::string& bytes = entries.at(name).bytes;
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  template <typename T>
  void Set(const std::string& name, DType dtype, std::vector<int64_t> shape,
           const std::vector<T>& values) {
    entries[name] = {
        dtype, std::move(shape),
        std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T))};
  }
};

void ExpectSameModel(const PackedModel& a, const PackedModel& b) {
  EXPECT_EQ(a.config, b.config);
  EXPECT_EQ(a.vectors, b.vectors);
  EXPECT_EQ(a.tokenizer_json, b.tokenizer_json);
  EXPECT_EQ(a.chat_template, b.chat_template);
  for (const TensorSpec& spec : ModelTensors(a.config)) {
    if (spec.kind != TensorSpec::Kind::kBlockMatrix) continue;
    const PackedTensor& left = a.matrices.at(spec.name);
    const PackedTensor& right = b.matrices.at(spec.name);
    EXPECT_EQ(left.group_size, right.group_size);
    EXPECT_EQ(UnpackCodes(left), UnpackCodes(right)) << spec.name;
    EXPECT_EQ(UnpackZeroPoints(left), UnpackZeroPoints(right)) << spec.name;
    EXPECT_EQ(UnpackScales(left), UnpackScales(right)) << spec.name;
  }
}

constexpr char kDown[] = "model.layers.0.mlp.down_proj.";

// Every field of a matrix's zero points, changed by `change`.
void ChangeZeroPoints(Tensors& tensors, const std::string& prefix, int bits,
                      const std::function<int(int)>& change) {
  const std::vector<int64_t> shape = tensors.entries.at(prefix + "qzeros").shape;
  const int64_t rows = tensors.entries.at(prefix + "scales").shape[1];
  const auto words = tensors.Values<uint32_t>(prefix + "qzeros");
  std::vector<int32_t> changed;
  for (int64_t group = 0; group < shape[0]; ++group) {
    std::vector<uint8_t> fields = UnpackFields({words.data() + group * shape[1], size_t(shape[1])},
                                               FieldLayout::kStream, bits, rows);
    for (uint8_t& field : fields) field = static_cast<uint8_t>(change(field) & ((1 << bits) - 1));
    const std::vector<int32_t> packed = PackBitStream(fields, bits);
    changed.insert(changed.end(), packed.begin(), packed.end());
  }
  tensors.Set(prefix + "qzeros", DType::kI32, shape, changed);
}

TEST(ImportTest, GptqOfBothVersionsComesBackBitForBit) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const auto& [group_size, symmetric] :
         {std::pair(32, false), std::pair(32, true), std::pair(0, false)}) {
      const PackedModel model =
          TinyModel({.bits = bits, .group_size = group_size, .symmetric = symmetric}, EvenConfig());
      const TemporaryDirectory directory;
      ASSERT_OK(ExportModel(model, ExportForm::kGptqV2, directory / ""));
      ASSERT_OK_AND_ASSIGN(const ImportedModel second, ImportModel(directory / ""));
      EXPECT_EQ(second.form, "GPTQ v2");
      EXPECT_EQ(second.num_rounded_scales, 0);
      EXPECT_EQ(second.source_hex.size(), 64);
      EXPECT_EQ(second.model.format, (QuantFormat{.bits = bits,
                                                  .group_size = group_size,
                                                  .symmetric = symmetric,
                                                  .embedding_bits = 16}));
      ExpectSameModel(second.model, model);

      // The same model as version 1 has it.
      Tensors tensors(directory / "model.safetensors");
      for (const TensorSpec& spec : ModelTensors(model.config)) {
        if (spec.kind != TensorSpec::Kind::kBlockMatrix) continue;
        ChangeZeroPoints(tensors, spec.name.substr(0, spec.name.size() - 6), bits,
                         [](int zero) { return zero - 1; });
      }
      tensors.Write(directory / "model.safetensors");
      ASSERT_OK_AND_ASSIGN(Json config,
                           ParseJson(ReadAll(directory / "config.json"), "config.json"));
      config["quantization_config"].erase("checkpoint_format");
      WriteAll(directory / "config.json", config.dump());
      ASSERT_OK_AND_ASSIGN(const ImportedModel first, ImportModel(directory / ""));
      EXPECT_EQ(first.form, "GPTQ v1");
      ExpectSameModel(first.model, model);

      // And with its metadata in the older place.
      const Json quantization = config["quantization_config"];
      config.erase("quantization_config");
      WriteAll(directory / "config.json", config.dump());
      WriteAll(directory / "quantize_config.json", quantization.dump());
      ASSERT_OK_AND_ASSIGN(const ImportedModel older, ImportModel(directory / ""));
      ExpectSameModel(older.model, model);
    }
  }
}

// Ten 3-bit fields to a word; other widths as they are.
std::vector<int32_t> PackWithinWords(const std::vector<uint8_t>& fields, int bits) {
  const int per_word = 32 / bits;
  std::vector<int32_t> words((fields.size() + per_word - 1) / per_word);
  for (size_t i = 0; i < fields.size(); ++i) {
    words[i / per_word] |= static_cast<int32_t>(uint32_t{fields[i]} << (i % per_word * bits));
  }
  return words;
}

TEST(ImportTest, FieldsAreTheGoldenOnes) {
  const std::vector<uint32_t> native = {0x08fac688, 0x1a23eb1a, 0x2c688fac, 0x0000003e};
  const std::vector<uint32_t> stream = {0x88fac688, 0xc688fac6, 0xfac688fa};
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(UnpackFields(native, FieldLayout::kWithinWords, 3, 32)[i], i % 8);
    EXPECT_EQ(UnpackFields(stream, FieldLayout::kStream, 3, 32)[i], i % 8);
  }
}

// A checkpoint of EfficientQAT with the model's integers: F32 scales, no metadata.
void WriteEfficientQat(const PackedModel& model, const TemporaryDirectory& directory) {
  ASSERT_OK(ExportModel(model, ExportForm::kHuggingFace, directory / ""));
  Tensors tensors(directory / "model.safetensors");
  for (const auto& [name, matrix] : model.matrices) {
    if (name.find("layers") == std::string::npos) continue;
    const std::string prefix = name.substr(0, name.size() - 6);
    const std::vector<uint8_t> codes = UnpackCodes(matrix);
    const std::vector<uint8_t> zeros = UnpackZeroPoints(matrix);
    const std::vector<float> scales = UnpackScales(matrix);
    const int64_t rows = matrix.rows;
    const int64_t groups = matrix.num_groups();
    std::vector<int32_t> qweight;
    int64_t words = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<int32_t> column = PackWithinWords(
          {codes.begin() + row * matrix.cols, codes.begin() + (row + 1) * matrix.cols},
          matrix.bits);
      words = static_cast<int64_t>(column.size());
      qweight.resize(words * rows);
      for (int64_t i = 0; i < words; ++i) qweight[i * rows + row] = column[i];
    }
    std::vector<int32_t> qzeros;
    std::vector<float> across(groups * rows);
    for (int64_t group = 0; group < groups; ++group) {
      std::vector<uint8_t> fields(rows);
      for (int64_t row = 0; row < rows; ++row) {
        fields[row] = zeros[row * groups + group];
        across[group * rows + row] = scales[row * groups + group];
      }
      const std::vector<int32_t> packed = PackWithinWords(fields, matrix.bits);
      qzeros.insert(qzeros.end(), packed.begin(), packed.end());
    }
    tensors.entries.erase(name);
    tensors.Set(prefix + "qweight", DType::kI32, {words, rows}, qweight);
    tensors.Set(prefix + "qzeros", DType::kI32,
                {groups, static_cast<int64_t>(qzeros.size()) / groups}, qzeros);
    tensors.Set(prefix + "scales", DType::kF32, {groups, rows}, across);
    tensors.Set(prefix + "bias", DType::kF16, {rows}, std::vector<uint16_t>(rows));
  }
  tensors.Write(directory / "model.safetensors");
}

TEST(ImportTest, EfficientQatNeedsNoMetadata) {
  for (const int bits : {2, 3, 4, 8}) {
    const PackedModel model = TinyModel({.bits = bits, .group_size = 32}, EvenConfig());
    const TemporaryDirectory directory;
    WriteEfficientQat(model, directory);
    ASSERT_OK_AND_ASSIGN(const ImportedModel imported, ImportModel(directory / "", 8));
    EXPECT_EQ(imported.form, "EfficientQAT");
    EXPECT_EQ(imported.model.format, (QuantFormat{.bits = bits, .group_size = 32}));
    EXPECT_EQ(imported.num_rounded_scales, 0);
    ExpectSameModel(imported.model, model);
    EXPECT_TRUE(imported.model.matrices.contains("model.embed_tokens.weight"));
  }
}

TEST(ImportTest, ScalesThatAreNoHalfFloatsAreRoundedAndCounted) {
  const PackedModel model = TinyModel({.bits = 2, .group_size = 32}, EvenConfig());
  const TemporaryDirectory directory;
  WriteEfficientQat(model, directory);
  Tensors tensors(directory / "model.safetensors");
  const std::string name = std::string(kDown) + "scales";
  std::vector<float> scales = tensors.Values<float>(name);
  for (int i = 0; i < 5; ++i) scales[i] = 0.1f;
  tensors.Set(name, DType::kF32, tensors.entries.at(name).shape, scales);
  tensors.Write(directory / "model.safetensors");
  ASSERT_OK_AND_ASSIGN(const ImportedModel imported, ImportModel(directory / ""));
  EXPECT_EQ(imported.num_rounded_scales, 5);
}

TEST(ImportTest, WhatIsNotSupportedOrDamagedIsNamed) {
  using absl::StatusCode;
  struct Case {
    std::function<void(Tensors&)> tensors;
    std::function<void(Json&)> quantization;
    StatusCode code;
    const char* message;
  };
  const std::string down = kDown;
  const auto keep = [](auto&) {};
  const std::vector<Case> cases = {
      {keep, [](Json& q) { q["quant_method"] = "awq"; }, StatusCode::kInvalidArgument,
       "quant_method: found awq"},
      {keep, [](Json& q) { q["checkpoint_format"] = "marlin"; }, StatusCode::kInvalidArgument,
       "checkpoint_format: found marlin"},
      {keep, [](Json& q) { q["desc_act"] = true; }, StatusCode::kInvalidArgument, "desc_act"},
      {keep, [](Json& q) { q["bits"] = 5; }, StatusCode::kInvalidArgument, "bits: found 5"},
      {keep, [](Json& q) { q["bits"] = 2; }, StatusCode::kDataLoss, "qweight: found shape"},
      {keep, [](Json& q) { q["group_size"] = 64; }, StatusCode::kDataLoss, "groups of 32"},
      {keep, [](Json& q) { q = Json(7); }, StatusCode::kInvalidArgument, "quantization_config"},
      {[&](Tensors& t) { t.entries.erase(down + "qzeros"); }, keep, StatusCode::kDataLoss,
       "down_proj.qzeros: is missing"},
      {[&](Tensors& t) {
         t.entries.at(down + "scales").shape = {6, 32};
       },
       keep, StatusCode::kDataLoss, "down_proj.scales"},
      {[&](Tensors& t) {
         auto order = t.Values<int32_t>(down + "g_idx");
         order[0] = 1;
         t.Set(down + "g_idx", DType::kI32, {96}, order);
       },
       keep, StatusCode::kInvalidArgument, "input 0 is in group 1"},
      {[&](Tensors& t) { t.Set(down + "bias", DType::kF32, {64}, std::vector<float>(64, 0.5f)); },
       keep, StatusCode::kInvalidArgument, "no such bias"},
      {[&](Tensors& t) {
         auto scales = t.Values<uint16_t>(down + "scales");
         scales[3] = 0x7e00;
         t.Set(down + "scales", DType::kF16, {3, 64}, scales);
       },
       keep, StatusCode::kDataLoss, "not finite"},
      {[&](Tensors& t) { t.entries.at(down + "qweight").dtype = DType::kF32; }, keep,
       StatusCode::kInvalidArgument, "dtype is F32, wanted I32"},
      {[](Tensors& t) { t.Set("model.other", DType::kF32, {1}, std::vector<float>{1}); }, keep,
       StatusCode::kInvalidArgument, "model.other"},
  };
  for (const Case& test : cases) {
    const TemporaryDirectory directory;
    ASSERT_OK(ExportModel(TinyModel({.bits = 4, .group_size = 32}, EvenConfig()),
                          ExportForm::kGptqV2, directory / ""));
    Tensors tensors(directory / "model.safetensors");
    test.tensors(tensors);
    tensors.Write(directory / "model.safetensors");
    ASSERT_OK_AND_ASSIGN(Json config, ParseJson(ReadAll(directory / "config.json"), "config.json"));
    test.quantization(config["quantization_config"]);
    WriteAll(directory / "config.json", config.dump());
    EXPECT_THAT(ImportModel(directory / "").status(), StatusIs(test.code, HasSubstr(test.message)))
        << test.message;
  }
  EXPECT_THAT(ImportModel("/nowhere").status(),
              StatusIs(StatusCode::kNotFound, HasSubstr("/nowhere")));
  // A dense checkpoint holds nothing packed.
  const TemporaryDirectory dense;
  ASSERT_OK(ExportModel(TinyModel({.bits = 4, .group_size = 32}, EvenConfig()),
                        ExportForm::kHuggingFace, dense / ""));
  EXPECT_FALSE(ImportModel(dense / "").ok());
}

}  // namespace
}  // namespace quern

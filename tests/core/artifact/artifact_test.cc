// Round trips, determinism and the golden artifact. Damage: damage_test.cc.

#include "core/artifact/artifact.h"

#include <cmath>
#include <limits>

#include "core/base/sha256.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/artifact/fixture.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

void ExpectSameWeights(const PackedModel& a, const PackedModel& b) {
  ASSERT_EQ(a.matrices.size(), b.matrices.size());
  for (const auto& [name, tensor] : a.matrices) {
    SCOPED_TRACE(name);
    const PackedTensor& other = b.matrices.at(name);
    EXPECT_EQ(UnpackCodes(tensor), UnpackCodes(other));
    EXPECT_EQ(UnpackScales(tensor), UnpackScales(other));
    EXPECT_EQ(UnpackZeroPoints(tensor), UnpackZeroPoints(other));
    EXPECT_EQ(Dequantize(tensor), Dequantize(other));
  }
  ASSERT_EQ(a.half_matrices.size(), b.half_matrices.size());
  for (const auto& [name, tensor] : a.half_matrices) {
    const HalfTensor& other = b.half_matrices.at(name);
    const size_t count = static_cast<size_t>(tensor.rows) * tensor.cols;
    EXPECT_EQ(std::vector<uint16_t>(tensor.data, tensor.data + count),
              std::vector<uint16_t>(other.data, other.data + count));
  }
  EXPECT_EQ(a.vectors, b.vectors);
}

class RoundTripTest : public testing::TestWithParam<QuantFormat> {};

TEST_P(RoundTripTest, LoadGivesWhatWasWritten) {
  const TemporaryDirectory directory;
  ModelConfig config = TinyConfig();
  config.tie_word_embeddings = false;
  config.qkv_bias = true;
  const PackedModel model = TinyModel(GetParam(), config);
  ASSERT_OK_AND_ASSIGN(const std::string id,
                       WriteArtifact(model, TinyLineage(), directory / "artifact"));
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact loaded, LoadArtifact(directory / "artifact", id));
  EXPECT_EQ(loaded.id, id);
  EXPECT_EQ(loaded.manifest.config, config);
  EXPECT_EQ(loaded.manifest.format, GetParam());
  EXPECT_EQ(loaded.manifest.lineage, TinyLineage());
  EXPECT_EQ(loaded.model.config, config);
  EXPECT_EQ(loaded.model.format, GetParam());
  EXPECT_EQ(loaded.model.tokenizer_json, model.tokenizer_json);
  EXPECT_EQ(loaded.model.chat_template, model.chat_template);
  EXPECT_EQ(loaded.model.weight_bytes(), model.weight_bytes());
  ExpectSameWeights(model, loaded.model);
  for (const auto& [name, tensor] : loaded.model.matrices) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.codes) % alignof(uint32_t), 0u) << name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.zero_points) % alignof(uint32_t), 0u) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Formats, RoundTripTest,
    testing::Values(QuantFormat{.bits = 2, .group_size = 32, .symmetric = true},
                    QuantFormat{.bits = 3, .group_size = 32},
                    QuantFormat{.bits = 4, .group_size = 64, .embedding_bits = 4},
                    QuantFormat{.bits = 8, .group_size = 0, .embedding_bits = 16},
                    QuantFormat{.bits = 2,
                                .group_size = 32,
                                .matrix_bits = {{"model.layers.0.mlp.down_proj.weight", 4},
                                                {"model.layers.0.self_attn.v_proj.weight", 3}}}));

TEST(ArtifactTest, TheModelOutlivesTheDirectory) {
  const PackedModel model = TinyModel();
  PackedModel loaded;
  {
    const TemporaryDirectory directory;
    ASSERT_OK(WriteArtifact(model, TinyLineage(), directory / "artifact"));
    ASSERT_OK_AND_ASSIGN(LoadedArtifact artifact, LoadArtifact(directory / "artifact"));
    loaded = std::move(artifact.model);
  }
  ExpectSameWeights(model, loaded);
}

TEST(ArtifactTest, EqualModelAndLineageGiveEqualBytes) {
  const TemporaryDirectory directory;
  ASSERT_OK_AND_ASSIGN(const std::string first,
                       WriteArtifact(TinyModel(), TinyLineage(), directory / "a"));
  ASSERT_OK_AND_ASSIGN(const std::string second,
                       WriteArtifact(TinyModel(), TinyLineage(), directory / "b"));
  EXPECT_EQ(first, second);
  EXPECT_EQ(first, Sha256Hex(ReadAll(directory / "b/manifest.json")));
  for (const char* name : {"manifest.json", "model.safetensors", "tokenizer.json"}) {
    EXPECT_EQ(ReadAll(directory / (std::string("a/") + name)),
              ReadAll(directory / (std::string("b/") + name)));
  }
  PackedModel other = TinyModel();
  other.vectors.begin()->second[0] += 1;
  ASSERT_OK_AND_ASSIGN(const std::string third,
                       WriteArtifact(other, TinyLineage(), directory / "c"));
  EXPECT_NE(first, third);
}

// The bytes of format version 1, for ever. A change here is a new format version.
TEST(ArtifactTest, GoldenArtifact) {
  const TemporaryDirectory directory;
  ASSERT_OK_AND_ASSIGN(const std::string id,
                       WriteArtifact(TinyModel(), TinyLineage(), directory / "artifact"));
  EXPECT_EQ(
      ReadAll(directory / "artifact/manifest.json"),
      R"({"config":{"bos_token_id":1,"eos_token_ids":[2],"head_dim":16,"hidden_size":32,)"
      R"("intermediate_size":48,"max_position_embeddings":64,"mlp_bias":false,)"
      R"("model_type":"llama","num_attention_heads":2,"num_hidden_layers":1,)"
      R"("num_key_value_heads":1,"o_bias":false,"qk_norm":false,"qkv_bias":false,)"
      R"("rms_norm_eps":1e-05,"rope_scaling":{"factor":1.0,"high_freq_factor":4.0,)"
      R"("low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"default"},)"
      R"("rope_theta":10000.0,"tie_word_embeddings":true,"vocab_size":33},)"
      R"("files":[{"path":"chat_template.jinja",)"
      R"("sha256":"f24189f08c85a1eb19a737306c3a13e85462ee33d964f28108d64a2485fa2171","size_bytes":14},)"
      R"({"path":"model.safetensors",)"
      R"("sha256":"902f6157085c4592827ee46d9f46661a067c3847d69e67522a8b50adb020cfd2","size_bytes":8090},)"
      R"({"path":"tokenizer.json",)"
      R"("sha256":"1717cec319169c82144386eec720f6c061391b5b1c207f080073d9daa07c6549","size_bytes":15}],)"
      R"("format":{"bits":3,"embedding_bits":8,"group_size":32,"symmetric":false},)"
      R"("format_version":1,"lineage":{"calibration_digest":"",)"
      R"("checkpoint_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",)"
      R"("quern_version":"0.1.0",)"
      R"("task_digest":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}})");
  EXPECT_EQ(id, "0e5691cb8925180eb84d1073058fa6cca457eba300b675065168dc3495ce3139");
}

TEST(ArtifactTest, TensorsLieUnderTheirNames) {
  const TemporaryDirectory directory;
  ASSERT_OK(WriteArtifact(TinyModel(), TinyLineage(), directory / "artifact"));
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file,
                       SafetensorsFile::Open(directory / "artifact/model.safetensors"));
  const auto expect = [&](const std::string& name, DType dtype, std::vector<int64_t> shape) {
    const auto it = file.tensors().find(name);
    ASSERT_NE(it, file.tensors().end()) << name;
    EXPECT_EQ(it->second.dtype, dtype) << name;
    EXPECT_EQ(it->second.shape, shape) << name;
  };
  // 48 inputs: two runs of 3 words; groups of 32 and 16; 32 rows x 2 groups = 64 zero points.
  expect("model.layers.0.mlp.down_proj.weight.codes", DType::kU32, {32, 6});
  expect("model.layers.0.mlp.down_proj.weight.scales", DType::kF16, {32, 2});
  expect("model.layers.0.mlp.down_proj.weight.zero_points", DType::kU32, {6});
  expect("model.embed_tokens.weight.codes", DType::kU32, {33, 8});
  expect("model.embed_tokens.weight.scales", DType::kF16, {33, 1});
  expect("model.embed_tokens.weight.zero_points", DType::kU32, {16});
  expect("model.norm.weight", DType::kF32, {32});
  EXPECT_EQ(file.tensors().size(), 8u * 3 + 3);
}

TEST(ArtifactTest, ANonEmptyDirectoryIsRefused) {
  const TemporaryDirectory directory;
  ASSERT_OK(WriteArtifact(TinyModel(), TinyLineage(), directory / "artifact"));
  EXPECT_THAT(WriteArtifact(TinyModel(), TinyLineage(), directory / "artifact"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("empty directory")));
}

TEST(ArtifactTest, WhatIsIncompleteOrInconsistentIsNotWritten) {
  const TemporaryDirectory directory;
  const auto expect = [&](const PackedModel& model, const Lineage& lineage,
                          const std::string& message) {
    EXPECT_THAT(WriteArtifact(model, lineage, directory / "artifact"),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
    EXPECT_FALSE(std::filesystem::exists(directory / "artifact"));
  };
  const std::string matrix = "model.layers.0.mlp.up_proj.weight";
  PackedModel model = TinyModel();
  model.matrices.erase(matrix);
  expect(model, TinyLineage(), matrix + ": is missing");

  model = TinyModel();
  model.matrices["extra"] = model.matrices[matrix];
  expect(model, TinyLineage(), "holds 12 tensors, its config asks for 11");

  model = TinyModel();
  model.matrices[matrix] = TinyModel({.bits = 4, .group_size = 32}).matrices[matrix];
  expect(model, TinyLineage(), "at 4 bits in groups of 32, asymmetric, wanted [48, 32] at 3 bits");

  model = TinyModel();
  model.vectors["model.norm.weight"][3] = std::numeric_limits<float>::infinity();
  expect(model, TinyLineage(), "tensor model.norm.weight: number 3 is inf");

  model = TinyModel();
  model.vectors["model.norm.weight"].push_back(0);
  expect(model, TinyLineage(), "has 33 numbers, wanted 32");

  model = TinyModel();
  std::vector<uint16_t> scales(33, 0x3c00);
  scales[7] = 0x7e00;
  model.matrices["model.embed_tokens.weight"].scales = scales.data();
  expect(model, TinyLineage(), "scale at row 7, column 0 is nan");

  model = TinyModel({.bits = 3, .group_size = 32, .embedding_bits = 16});
  const std::vector<uint16_t> infinite(33 * 32, 0xfc00);
  model.half_matrices["model.embed_tokens.weight"].data = infinite.data();
  expect(model, TinyLineage(), "number at row 0, column 0 is -inf");

  model = TinyModel();
  PackedTensor& down = model.matrices["model.layers.0.mlp.down_proj.weight"];
  std::vector<uint32_t> codes(down.codes, down.codes + down.code_words());
  codes[11] |= 0x80000000;  // the second row's last code of 64, where 48 are used
  down.codes = codes.data();
  expect(model, TinyLineage(), "the filling after the codes of row 1 is not zero");

  Lineage lineage = TinyLineage();
  lineage.task_digest = "";
  expect(TinyModel(), lineage, "lineage.task_digest");
}

TEST(QuantFormatTest, NamesFieldValueAndWhatIsSupported) {
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  for (int bits : {-1, 0, 1, 5, 16}) {
    EXPECT_THAT(QuantFormat{.bits = bits}.Validate(),
                StatusIs(kInvalid, "format.bits is " + std::to_string(bits) +
                                       ", supported are 2, 3, 4 and 8"));
  }
  for (int group_size : {-1, 1, 16, 63, 256}) {
    EXPECT_THAT(
        QuantFormat{.group_size = group_size}.Validate(),
        StatusIs(kInvalid, HasSubstr("format.group_size is " + std::to_string(group_size))));
  }
  for (int embedding_bits : {0, 2, 3, 32}) {
    EXPECT_THAT(QuantFormat{.embedding_bits = embedding_bits}.Validate(),
                StatusIs(kInvalid, HasSubstr("format.embedding_bits")));
  }
  EXPECT_OK((QuantFormat{.bits = 3, .group_size = 0, .embedding_bits = 16}.Validate()));
  EXPECT_THAT((QuantFormat{.bits = 2, .matrix_bits = {{"a", 2}}}.Validate()),
              StatusIs(kInvalid, HasSubstr("format.matrix_bits of a is 2")));
}

}  // namespace
}  // namespace quern

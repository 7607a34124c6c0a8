// Scale deltas: round trip, golden bytes, what a writer refuses and each kind of damage.

#include "core/artifact/scale_delta.h"

#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>

#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/artifact/fixture.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;
constexpr char kUp[] = "model.layers.0.mlp.up_proj.weight";
constexpr char kDown[] = "model.layers.0.mlp.down_proj.weight";
constexpr char kNorm[] = "model.norm.weight";

// Other scales for `name`, exact in half floats.
void Rescale(PackedModel& model, const std::string& name) {
  std::vector<float> scales = UnpackScales(model.matrices.at(name));
  for (float& scale : scales) scale *= 2;
  model.matrices.at(name) = WithScales(model.matrices.at(name), scales).value();
}

// Other zero points for `name`: the first one, 0 or 1 for another value.
void MoveZeroPoint(PackedModel& model, const std::string& name) {
  PackedTensor& tensor = model.matrices.at(name);
  auto words = std::make_shared<std::vector<uint32_t>>(
      tensor.zero_points, tensor.zero_points + tensor.zero_point_words());
  words->front() ^= 1;
  tensor.zero_points = words->data();
  tensor.storage = std::make_shared<
      std::pair<std::shared_ptr<const void>, std::shared_ptr<const std::vector<uint32_t>>>>(
      tensor.storage, words);
}

class ScaleDeltaTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK(WriteArtifact(TinyModel(), TinyLineage(), root_ / "base"));
    ASSERT_OK_AND_ASSIGN(base_, LoadArtifact(root_ / "base"));
    tuned_ = base_.model;
    Rescale(tuned_, kUp);
    tuned_.vectors.at(kNorm)[3] += 1;
    ASSERT_OK_AND_ASSIGN(id_, WriteScaleDelta(base_, tuned_, TinyLineage(), root_ / "delta"));
    manifest_ = ReadAll(Path("manifest.json"));
  }

  std::string Path(const std::string& name) const { return root_ / ("delta/" + name); }
  absl::StatusOr<LoadedArtifact> Load() const { return LoadScaleDelta(root_ / "delta", base_); }
  absl::StatusOr<std::string> Write(const PackedModel& tuned) {
    return WriteScaleDelta(base_, tuned, TinyLineage(), root_ / absl::StrCat("other", ++num_));
  }
  absl::Status LoadWith(const std::function<void(Json&)>& edit) {
    Json json = Json::parse(manifest_);
    edit(json);
    WriteAll(Path("manifest.json"), DumpCanonicalJson(json));
    return Load().status();
  }
  // With these tensors and a manifest made to fit: what a hostile writer would do.
  absl::Status LoadWithTensors(
      const std::function<void(std::map<std::string, TensorView>&)>& edit) {
    std::filesystem::copy_file(Path("delta.safetensors"), root_ / "copy.safetensors",
                               std::filesystem::copy_options::skip_existing);
    auto file = SafetensorsFile::Open(root_ / "copy.safetensors");
    EXPECT_OK(file);
    std::map<std::string, TensorView> tensors = file->tensors();
    edit(tensors);
    EXPECT_OK(WriteSafetensors(Path("delta.safetensors"), tensors, {}));
    const std::string bytes = ReadAll(Path("delta.safetensors"));
    return LoadWith([&](Json& json) {
      json["files"][0]["size_bytes"] = bytes.size();
      json["files"][0]["sha256"] = Sha256Hex(bytes);
    });
  }

  const TemporaryDirectory root_;
  LoadedArtifact base_;
  PackedModel tuned_;
  std::string id_;
  std::string manifest_;
  int num_ = 0;
};

TEST_F(ScaleDeltaTest, OtherScalesAreNoLongerTheArtifacts) {
  EXPECT_EQ(base_.model.matrices.at(kUp).origin, base_.id);
  EXPECT_EQ(tuned_.matrices.at(kUp).origin, "");
}

TEST_F(ScaleDeltaTest, LoadGivesWhatWasWritten) {
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact loaded, LoadScaleDelta(root_ / "delta", base_, id_));
  EXPECT_EQ(loaded.id, id_);
  EXPECT_EQ(loaded.manifest.base, base_.id);
  EXPECT_EQ(loaded.manifest.lineage, TinyLineage());
  EXPECT_EQ(loaded.model.tokenizer_json, base_.model.tokenizer_json);
  EXPECT_EQ(loaded.model.chat_template, base_.model.chat_template);
  EXPECT_EQ(loaded.model.vectors, tuned_.vectors);
  for (const auto& [name, tensor] : loaded.model.matrices) {
    SCOPED_TRACE(name);
    EXPECT_EQ(Dequantize(tensor), Dequantize(tuned_.matrices.at(name)));
    // Codes are the base's own memory, and so is all that was not replaced.
    EXPECT_EQ(tensor.codes, base_.model.matrices.at(name).codes);
    const bool replaced = name == kUp;
    EXPECT_EQ(tensor.scales == base_.model.matrices.at(name).scales, !replaced);
    EXPECT_EQ(tensor.origin, replaced ? id_ : base_.id);
  }
  EXPECT_LT(std::filesystem::file_size(Path("delta.safetensors")),
            std::filesystem::file_size(root_ / "base/model.safetensors") / 10);
}

TEST_F(ScaleDeltaTest, HoldsEachKindOfChange) {
  PackedModel tuned = base_.model;
  MoveZeroPoint(tuned, kDown);
  Rescale(tuned, "model.embed_tokens.weight");
  ASSERT_OK_AND_ASSIGN(const std::string id, Write(tuned));
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact loaded, LoadScaleDelta(root_ / "other1", base_, id));
  for (const auto& [name, tensor] : loaded.model.matrices) {
    EXPECT_EQ(Dequantize(tensor), Dequantize(tuned.matrices.at(name))) << name;
  }
  EXPECT_NE(Dequantize(loaded.model.matrices.at(kDown)),
            Dequantize(base_.model.matrices.at(kDown)));
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file,
                       SafetensorsFile::Open(root_ / "other1/delta.safetensors"));
  EXPECT_EQ(file.tensors().size(), 2u);
}

TEST_F(ScaleDeltaTest, OutlivesBaseAndDirectory) {
  ASSERT_OK_AND_ASSIGN(LoadedArtifact loaded, Load());
  const PackedModel model = std::move(loaded.model);
  base_ = {};
  std::filesystem::remove_all(root_ / "base");
  std::filesystem::remove_all(root_ / "delta");
  for (const auto& [name, tensor] : model.matrices) {
    EXPECT_EQ(Dequantize(tensor), Dequantize(tuned_.matrices.at(name))) << name;
  }
}

// The bytes of format version 2, for ever. A change here is a new format version.
TEST_F(ScaleDeltaTest, GoldenDelta) {
  Json json = Json::parse(manifest_);
  json.erase("config");
  EXPECT_EQ(
      DumpCanonicalJson(json),
      R"({"base":"0e5691cb8925180eb84d1073058fa6cca457eba300b675065168dc3495ce3139",)"
      R"("files":[{"path":"delta.safetensors",)"
      R"("sha256":"a39fa45ae16dccc36b2292fd077bf6739915182656a679e2993572a234085cd6","size_bytes":416}],)"
      R"("format":{"bits":3,"embedding_bits":8,"group_size":32,"symmetric":false},)"
      R"("format_version":2,"kind":"scale_delta",)"
      R"("lineage":{"calibration_digest":"",)"
      R"("checkpoint_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",)"
      R"("quern_version":"0.1.0",)"
      R"("task_digest":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"}})");
  EXPECT_EQ(id_, "e9e17525f1a48ac6b3a6c3d0dafb136d4dba5df6f785e23c87a6f5c0001ead17");
}

TEST_F(ScaleDeltaTest, WriterRefusesWhatIsNoScaleDelta) {
  EXPECT_THAT(Write(base_.model), StatusIs(kInvalid, HasSubstr("equal to its base")));
  PackedModel codes = tuned_;
  codes.matrices.at(kDown) = base_.model.matrices.at("model.layers.0.self_attn.q_proj.weight");
  EXPECT_THAT(Write(codes), StatusIs(kInvalid, HasSubstr(kDown)));
  PackedModel other = TinyModel();
  std::vector<uint8_t> flipped = UnpackCodes(other.matrices.at(kDown));
  flipped[0] ^= 1;
  const PackedTensor& down = other.matrices.at(kDown);
  other.matrices.at(kDown) = Pack(down.rows, down.cols, down.bits, down.group_size, down.symmetric,
                                  flipped, UnpackScales(down), UnpackZeroPoints(down))
                                 .value();
  EXPECT_THAT(Write(other), StatusIs(kInvalid, HasSubstr(absl::StrCat(kDown, ".codes differs"))));
  PackedModel text = tuned_;
  text.tokenizer_json += " ";
  EXPECT_THAT(Write(text), StatusIs(kInvalid, HasSubstr("tokenizer")));
  EXPECT_THAT(Write(TinyModel({.bits = 4, .group_size = 32})),
              StatusIs(kInvalid, HasSubstr("format")));
  PackedModel nan = tuned_;
  nan.vectors.at(kNorm)[0] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(Write(nan), StatusIs(kInvalid, HasSubstr("model.norm.weight: number 0")));
  // No chains.
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact delta, Load());
  EXPECT_THAT(WriteScaleDelta(delta, base_.model, TinyLineage(), root_ / "chain"),
              StatusIs(kInvalid, HasSubstr("is a scale delta itself")));
  EXPECT_THAT(WriteScaleDelta(base_, tuned_, TinyLineage(), root_ / "delta"),
              StatusIs(kPrecondition, HasSubstr("empty directory")));
}

TEST_F(ScaleDeltaTest, IsNoWholeModelAndNeedsItsOwnBase) {
  EXPECT_THAT(LoadArtifact(root_ / "delta"),
              StatusIs(kPrecondition, HasSubstr("a scale delta of artifact " + base_.id)));
  EXPECT_THAT(LoadScaleDelta(root_ / "base", base_),
              StatusIs(kPrecondition, HasSubstr("is a whole model")));
  LoadedArtifact other = base_;
  other.id = std::string(64, '0');
  EXPECT_THAT(LoadScaleDelta(root_ / "delta", other),
              StatusIs(kPrecondition, AllOf(HasSubstr(base_.id), HasSubstr(other.id))));
  LoadedArtifact chained = base_;
  chained.manifest.base = std::string(64, '0');
  EXPECT_THAT(LoadScaleDelta(root_ / "delta", chained),
              StatusIs(kPrecondition, HasSubstr("a delta of a delta")));
  EXPECT_THAT(LoadScaleDelta(root_ / "delta", base_, std::string(64, '0')),
              StatusIs(kDataLoss, HasSubstr("SHA-256")));
}

TEST_F(ScaleDeltaTest, EveryBitOfTheManifest) {
  for (size_t i = 0; i < manifest_.size(); ++i) {
    std::string bytes = manifest_;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    WriteAll(Path("manifest.json"), bytes);
    ASSERT_THAT(LoadScaleDelta(root_ / "delta", base_, id_),
                StatusIs(kDataLoss, HasSubstr("SHA-256")));
    if (const auto loaded = Load(); loaded.ok()) {
      ASSERT_NE(loaded->id, id_);
    }
  }
}

TEST_F(ScaleDeltaTest, AThousandBitsAndEveryHeaderByteOfTheTensors) {
  const std::string bytes = ReadAll(Path("delta.safetensors"));
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    std::string damaged = bytes;
    const size_t bit = random() % (damaged.size() * 8);
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    WriteAll(Path("delta.safetensors"), damaged);
    ASSERT_THAT(Load(), StatusIs(kDataLoss, HasSubstr("delta.safetensors"))) << "bit " << bit;
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  for (size_t i = 0; i < 8 + header_bytes; ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 7)));
    WriteAll(Path("delta.safetensors"), damaged);
    ASSERT_THAT(LoadWith([&](Json& json) { json["files"][0]["sha256"] = Sha256Hex(damaged); }),
                StatusIs(kDataLoss, HasSubstr("delta.safetensors")))
        << "byte " << i;
  }
}

TEST_F(ScaleDeltaTest, TruncationsAndOddFiles) {
  for (const char* name : {"manifest.json", "delta.safetensors"}) {
    const std::string bytes = ReadAll(Path(name));
    for (size_t size : {size_t{0}, size_t{1}, size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
      WriteAll(Path(name), bytes.substr(0, size));
      ASSERT_THAT(Load(), StatusIs(kDataLoss, HasSubstr(name))) << name << " cut to " << size;
    }
    WriteAll(Path(name), bytes + "x");
    EXPECT_THAT(Load(), StatusIs(kDataLoss, HasSubstr(name)));
    WriteAll(Path(name), bytes);
  }
  WriteAll(Path("tokenizer.json"), "{}");
  EXPECT_THAT(Load(), StatusIs(kDataLoss, HasSubstr("not named by the manifest")));
  std::filesystem::remove(Path("tokenizer.json"));
  std::filesystem::remove(Path("delta.safetensors"));
  EXPECT_THAT(Load(), StatusIs(kDataLoss, HasSubstr("delta.safetensors is missing")));
}

TEST_F(ScaleDeltaTest, ManifestFields) {
  const auto expect = [&](const std::function<void(Json&)>& edit, const std::string& message) {
    EXPECT_THAT(LoadWith(edit), StatusIs(kDataLoss, HasSubstr(message)));
  };
  expect([](Json& json) { json["kind"] = "patch"; }, "kind: found \"patch\", wanted scale_delta");
  expect([](Json& json) { json["kind"] = 1; }, "kind");
  expect([](Json& json) { json.erase("kind"); }, "key kind is missing");
  expect([](Json& json) { json.erase("base"); }, "key base is missing");
  for (const std::string& base : {std::string(), std::string(63, 'a'), std::string(64, 'A'),
                                  "artifacts/" + std::string(64, 'a'), std::string("../x")}) {
    expect([&](Json& json) { json["base"] = base; }, "base");
  }
  // The keys of a delta in a whole model, and the reverse.
  expect([](Json& json) { json["format_version"] = 1; }, "unknown key \"base\"");
  expect([](Json& json) { json["extra"] = 1; }, "unknown key \"extra\"");
  expect([](Json& json) { json["files"][0]["path"] = "model.safetensors"; },
         "not part of a scale delta");
  expect([](Json& json) { json["files"][0]["path"] = "../delta.safetensors"; }, "files[0]");
  expect([](Json& json) { json["files"] = Json::array(); }, "delta.safetensors is missing");
  expect([](Json& json) { json["config"]["vocab_size"] = 34; }, "not those of the base");
  expect([](Json& json) { json["format"]["group_size"] = 64; }, "not those of the base");
  EXPECT_THAT(LoadWith([](Json& json) { json["base"] = std::string(64, '0'); }),
              StatusIs(kPrecondition, HasSubstr("not of " + base_.id)));
  EXPECT_THAT(LoadWith([](Json& json) { json["format_version"] = 3; }),
              StatusIs(kInvalid, HasSubstr("reads up to 2")));
}

TEST_F(ScaleDeltaTest, TensorsThatAreNotTheBases) {
  const std::string scales = std::string(kUp) + ".scales";
  const auto expect = [&](const std::function<void(std::map<std::string, TensorView>&)>& edit,
                          const std::string& message) {
    EXPECT_THAT(LoadWithTensors(edit), StatusIs(kDataLoss, HasSubstr(message)));
  };
  EXPECT_OK(LoadWithTensors([](auto&) {}));
  const std::vector<uint32_t> zeros(4096);
  const auto view = [&](DType dtype, std::vector<int64_t> shape, size_t bytes) {
    return TensorView{dtype, std::move(shape), zeros.data(), bytes};
  };
  expect([](auto& tensors) { tensors.clear(); }, "holds no tensor");
  expect([&](auto& tensors) { tensors["extra"] = tensors[scales]; },
         "tensor extra is none of the base's");
  expect(
      [&](auto& tensors) { tensors["model.layers.1.mlp.up_proj.weight.scales"] = tensors[scales]; },
      "is none of the base's");
  expect(
      [&](auto& tensors) {
        tensors[std::string(kUp) + ".codes"] = view(DType::kU32, {48, 3}, 576);
      },
      ".codes is none of the base's");
  expect(
      [&](auto& tensors) {
        tensors[kUp] = view(DType::kF16, {48, 32}, 3072);
      },
      "is none of the base's");
  expect(
      [&](auto& tensors) {
        tensors[scales] = view(DType::kF16, {48, 2}, 192);
      },
      "is F16 [48, 2], wanted F16 [48, 1]");
  expect(
      [&](auto& tensors) {
        tensors[scales] = view(DType::kF16, {1, 48}, 96);
      },
      "is F16 [1, 48], wanted F16 [48, 1]");
  expect(
      [&](auto& tensors) {
        tensors[scales] = view(DType::kBF16, {48, 1}, 96);
      },
      "is BF16 [48, 1], wanted F16 [48, 1]");
  expect([&](auto& tensors) { tensors[kNorm] = view(DType::kF32, {31}, 124); }, "wanted F32 [32]");
  expect(
      [&](auto& tensors) {
        tensors[std::string(kUp) + ".zero_points"] = view(DType::kU32, {7}, 28);
      },
      "is U32 [7], wanted U32 [6]");
  const std::vector<uint16_t> nans(48, 0x7e00);
  expect(
      [&](auto& tensors) {
        tensors[scales] = {DType::kF16, {48, 1}, nans.data(), 96};
      },
      "scale at row 0, column 0 is nan");
  const std::vector<float> infinite(32, std::numeric_limits<float>::infinity());
  expect(
      [&](auto& tensors) {
        tensors[kNorm] = {DType::kF32, {32}, infinite.data(), 128};
      },
      "model.norm.weight: number 0 is inf");
  const std::vector<uint32_t> ones(6, 0xffffffff);
  expect(
      [&](auto& tensors) {
        tensors[std::string(kUp) + ".zero_points"] = {DType::kU32, {6}, ones.data(), 24};
      },
      "the filling after the zero points is not zero");
}

TEST_F(ScaleDeltaTest, ASymmetricBaseHasNoZeroPointsToReplace) {
  const QuantFormat format{.bits = 2, .group_size = 32, .symmetric = true};
  ASSERT_OK(WriteArtifact(TinyModel(format), TinyLineage(), root_ / "symmetric"));
  ASSERT_OK_AND_ASSIGN(base_, LoadArtifact(root_ / "symmetric"));
  tuned_ = base_.model;
  Rescale(tuned_, kUp);
  std::filesystem::remove_all(root_ / "delta");
  ASSERT_OK(WriteScaleDelta(base_, tuned_, TinyLineage(), root_ / "delta"));
  manifest_ = ReadAll(Path("manifest.json"));
  EXPECT_OK(Load());
  const std::vector<uint32_t> zeros(4);
  EXPECT_THAT(LoadWithTensors([&](auto& tensors) {
                tensors[std::string(kUp) + ".zero_points"] = {DType::kU32, {4}, zeros.data(), 16};
              }),
              StatusIs(kDataLoss, HasSubstr("is none of the base's")));
}

}  // namespace
}  // namespace quern

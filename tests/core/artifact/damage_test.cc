// Every kind of damage to an artifact directory is refused with a status that names the place.

#include <sys/stat.h>

#include <functional>
#include <random>

#include "core/artifact/artifact.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/safetensors/safetensors.h"
#include "tests/core/artifact/fixture.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

constexpr auto kDamaged = absl::StatusCode::kDataLoss;

class DamageTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(id_, WriteArtifact(TinyModel(), TinyLineage(), root_ / "artifact"));
    manifest_ = ReadAll(Path("manifest.json"));
  }

  std::string Path(const std::string& name) const { return root_ / ("artifact/" + name); }
  absl::Status Load() const { return LoadArtifact(root_ / "artifact").status(); }

  // Loads with the manifest edited as JSON and written canonically.
  absl::Status LoadWith(const std::function<void(Json&)>& edit) {
    Json json = Json::parse(manifest_);
    edit(json);
    WriteAll(Path("manifest.json"), DumpCanonicalJson(json));
    return Load();
  }

  // Loads with the tensors edited and the manifest made to fit the new file: what a hostile writer
  // would do.
  absl::Status LoadWithTensors(
      const std::function<void(std::map<std::string, TensorView>&)>& edit) {
    const std::string copy = root_ / "copy.safetensors";
    std::filesystem::copy_file(Path("model.safetensors"), copy,
                               std::filesystem::copy_options::overwrite_existing);
    auto file = SafetensorsFile::Open(copy);
    EXPECT_OK(file);
    std::map<std::string, TensorView> tensors = file->tensors();
    edit(tensors);
    EXPECT_OK(WriteSafetensors(Path("model.safetensors"), tensors, {}));
    const std::string bytes = ReadAll(Path("model.safetensors"));
    return LoadWith([&](Json& json) {
      json["files"][1]["size_bytes"] = bytes.size();
      json["files"][1]["sha256"] = Sha256Hex(bytes);
    });
  }

  void Restore() {
    std::filesystem::remove_all(root_ / "artifact");
    ASSERT_OK(WriteArtifact(TinyModel(), TinyLineage(), root_ / "artifact"));
  }

  const TemporaryDirectory root_;
  std::string id_;
  std::string manifest_;
};

TEST_F(DamageTest, TheFixtureIsWhole) {
  EXPECT_OK(Load());
  EXPECT_OK(LoadWith([](Json&) {}));
  EXPECT_OK(LoadWithTensors([](auto&) {}));
}

TEST_F(DamageTest, AnotherIdIsRefused) {
  EXPECT_THAT(LoadArtifact(root_ / "artifact", std::string(64, '0')),
              StatusIs(kDamaged, HasSubstr("damaged, or another artifact")));
  EXPECT_THAT(LoadArtifact(root_ / "artifact", "x"), StatusIs(kDamaged, HasSubstr("wanted x")));
  EXPECT_THAT(LoadArtifact(root_ / "nothing"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("manifest.json")));
}

TEST_F(DamageTest, EveryBitOfTheManifest) {
  // With the id known, each flip is caught by it; without, each flip either is refused or gives
  // another artifact id, never the old one.
  for (size_t i = 0; i < manifest_.size(); ++i) {
    std::string bytes = manifest_;
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    WriteAll(Path("manifest.json"), bytes);
    ASSERT_THAT(LoadArtifact(root_ / "artifact", id_), StatusIs(kDamaged, HasSubstr("SHA-256")));
    if (const auto loaded = LoadArtifact(root_ / "artifact"); loaded.ok()) {
      ASSERT_NE(loaded->id, id_);
    }
  }
}

TEST_F(DamageTest, AThousandBitsOfTheFiles) {
  std::mt19937 random(1);
  for (const char* name : {"model.safetensors", "tokenizer.json", "chat_template.jinja"}) {
    const std::string bytes = ReadAll(Path(name));
    const int flips = bytes.size() > 100 ? 1000 : 50;
    for (int i = 0; i < flips; ++i) {
      std::string damaged = bytes;
      const size_t bit = random() % (damaged.size() * 8);
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
      WriteAll(Path(name), damaged);
      ASSERT_THAT(Load(), StatusIs(kDamaged, HasSubstr(name))) << "bit " << bit;
    }
    WriteAll(Path(name), bytes);
  }
  EXPECT_OK(Load());
}

TEST_F(DamageTest, EveryHeaderByteOfTheWeightsUnderAFittingManifest) {
  // The digest is right here, so that the tensor checks alone stand between the file and the model:
  // a header may still be valid after a flip (a space for a space), but never crash or half load.
  const std::string bytes = ReadAll(Path("model.safetensors"));
  uint64_t header_bytes = 0;
  memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  for (size_t i = 0; i < 8 + header_bytes; ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 7)));
    WriteAll(Path("model.safetensors"), damaged);
    const absl::Status status =
        LoadWith([&](Json& json) { json["files"][1]["sha256"] = Sha256Hex(damaged); });
    ASSERT_THAT(status, StatusIs(kDamaged, HasSubstr("model.safetensors"))) << "byte " << i;
  }
}

TEST_F(DamageTest, Truncations) {
  for (const char* name : {"manifest.json", "model.safetensors", "tokenizer.json"}) {
    const std::string bytes = ReadAll(Path(name));
    for (size_t size : {size_t{0}, size_t{1}, size_t{7}, bytes.size() / 2, bytes.size() - 1}) {
      WriteAll(Path(name), bytes.substr(0, size));
      ASSERT_THAT(Load(), StatusIs(kDamaged, HasSubstr(name))) << name << " cut to " << size;
    }
    WriteAll(Path(name), bytes + "x");
    EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr(name)));
    WriteAll(Path(name), bytes);
  }
  EXPECT_OK(Load());
}

TEST_F(DamageTest, MissingExtraAndOddFiles) {
  WriteAll(Path("extra.bin"), "x");
  EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr("extra.bin: not named by the manifest")));
  std::filesystem::remove(Path("extra.bin"));

  const std::string tokenizer = ReadAll(Path("tokenizer.json"));
  std::filesystem::remove(Path("tokenizer.json"));
  EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr("tokenizer.json is missing")));
  std::filesystem::create_directory(Path("tokenizer.json"));
  EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr("tokenizer.json")));
  std::filesystem::remove(Path("tokenizer.json"));
  ASSERT_EQ(mkfifo(Path("tokenizer.json").c_str(), 0600), 0);
  EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr("tokenizer.json")));
  std::filesystem::remove(Path("tokenizer.json"));
  WriteAll(Path("tokenizer.json"), tokenizer);
  EXPECT_OK(Load());

  std::filesystem::remove(Path("model.safetensors"));
  EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr("model.safetensors is missing")));
}

TEST_F(DamageTest, ANewerVersionIsRefusedSayingSo) {
  EXPECT_THAT(LoadWith([](Json& json) {
                json["format_version"] = 3;
                json["something_new"] = Json::object();
              }),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("format_version is 3, this program reads up to 2")));
  EXPECT_THAT(LoadWith([](Json& json) { json["format_version"] = 0; }),
              StatusIs(kDamaged, HasSubstr("format_version: found 0")));
  EXPECT_THAT(LoadWith([](Json& json) { json["format_version"] = 1.0; }),
              StatusIs(kDamaged, HasSubstr("format_version")));
  EXPECT_THAT(LoadWith([](Json& json) { json.erase("format_version"); }),
              StatusIs(kDamaged, HasSubstr("format_version")));
}

TEST_F(DamageTest, KeysAreExact) {
  const auto expect = [&](const std::function<void(Json&)>& edit, const std::string& message) {
    EXPECT_THAT(LoadWith(edit), StatusIs(kDamaged, HasSubstr(message)));
  };
  expect([](Json& json) { json["extra"] = 1; }, "unknown key \"extra\"");
  expect([](Json& json) { json["format"]["extra"] = 1; }, "format: unknown key \"extra\"");
  expect([](Json& json) { json["config"]["extra"] = 1; }, "extra");
  expect([](Json& json) { json["lineage"]["extra"] = 1; }, "lineage: unknown key");
  expect([](Json& json) { json["files"][0]["extra"] = 1; }, "files[0]: unknown key");
  for (const char* key : {"config", "format", "lineage", "files"}) {
    expect([&](Json& json) { json.erase(key); }, key);
    expect([&](Json& json) { json[key] = 3; }, key);
    expect([&](Json& json) { json[key] = nullptr; }, key);
  }
  expect([](Json& json) { json["format"]["bits"] = 5; }, "format.bits is 5");
  expect([](Json& json) { json["format"]["bits"] = "4"; }, "bits");
  expect([](Json& json) { json["format"]["symmetric"] = nullptr; }, "canonical");
  expect([](Json& json) { json["config"]["hidden_size"] = -1; }, "hidden_size");
  expect([](Json& json) { json["config"]["num_hidden_layers"] = 1'000'000'000; },
         "num_hidden_layers");
  expect([](Json& json) { json["lineage"]["quern_version"] = ""; }, "quern_version");
}

TEST_F(DamageTest, OnlyCanonicalBytes) {
  for (const std::string& bytes :
       {" " + manifest_, manifest_ + "\n", "\xef\xbb\xbf" + manifest_, std::string("null"),
        std::string("[]"), std::string(), Json::parse(manifest_).dump(1), std::string(100'000, '['),
        manifest_.substr(0, manifest_.size() - 1) + ",\"files\":[]}"}) {
    WriteAll(Path("manifest.json"), bytes);
    EXPECT_THAT(Load(), StatusIs(kDamaged, HasSubstr("manifest.json"))) << bytes.substr(0, 40);
  }
  WriteAll(Path("manifest.json"), std::string(2 << 20, ' '));
  EXPECT_FALSE(Load().ok());
}

TEST_F(DamageTest, PathTricks) {
  for (const char* path : {"", "/model.safetensors", "../model.safetensors", "a/../../b", "./x",
                           "a//b", "a/", "..", "model.safetensors\n", "caf\xc3\xa9", "a\\b",
                           "/etc/passwd", "other.bin", "manifest.json"}) {
    EXPECT_THAT(LoadWith([&](Json& json) { json["files"][0]["path"] = path; }),
                StatusIs(kDamaged, HasSubstr("files[0]")))
        << path;
  }
  EXPECT_THAT(LoadWith([](Json& json) { json["files"][0]["path"] = std::string("a\0b", 3); }),
              StatusIs(kDamaged, HasSubstr("a\\000b")));
  EXPECT_THAT(LoadWith([](Json& json) { json["files"].push_back(json["files"][1]); }),
              StatusIs(kDamaged, HasSubstr("ascending order, each once")));
  EXPECT_THAT(LoadWith([](Json& json) { std::swap(json["files"][0], json["files"][1]); }),
              StatusIs(kDamaged, HasSubstr("ascending order, each once")));
  EXPECT_THAT(LoadWith([](Json& json) { json["files"] = Json::array(); }),
              StatusIs(kDamaged, HasSubstr("model.safetensors is missing")));
}

TEST_F(DamageTest, SizesAndDigests) {
  const std::string good = Json::parse(manifest_)["files"][1]["sha256"];
  std::string upper = good;
  for (char& c : upper) c = static_cast<char>(toupper(c));
  for (const std::string& digest :
       {upper, good.substr(1), good + "0", std::string(), "sha512:" + good.substr(7),
        std::string("sha256:../../x"), std::string(64, 'g')}) {
    EXPECT_THAT(LoadWith([&](Json& json) { json["files"][1]["sha256"] = digest; }),
                StatusIs(kDamaged, HasSubstr("sha256")))
        << digest;
    EXPECT_THAT(LoadWith([&](Json& json) { json["lineage"]["task_digest"] = digest; }),
                StatusIs(kDamaged, HasSubstr("task_digest")));
  }
  EXPECT_THAT(LoadWith([&](Json& json) { json["files"][1]["sha256"] = std::string(64, '0'); }),
              StatusIs(kDamaged, HasSubstr("the file is damaged")));
  const int64_t size = Json::parse(manifest_)["files"][1]["size_bytes"];
  for (int64_t wrong : {int64_t{0}, int64_t{-1}, size - 1, size + 1, INT64_MAX}) {
    EXPECT_THAT(LoadWith([&](Json& json) { json["files"][1]["size_bytes"] = wrong; }),
                StatusIs(kDamaged, HasSubstr("bytes")))
        << wrong;
  }
}

TEST_F(DamageTest, TensorsThatDisagreeWithTheManifest) {
  const std::string matrix = "model.layers.0.mlp.down_proj.weight";
  const auto expect = [&](const std::function<void(std::map<std::string, TensorView>&)>& edit,
                          const std::string& message) {
    EXPECT_THAT(LoadWithTensors(edit), StatusIs(kDamaged, HasSubstr(message)));
    ASSERT_NO_FATAL_FAILURE(Restore());
  };
  const std::vector<uint32_t> zeros(1024);
  expect([&](auto& tensors) { tensors.erase(matrix + ".scales"); }, matrix + ".scales is missing");
  expect([&](auto& tensors) { tensors["extra"] = tensors[matrix + ".codes"]; },
         "tensor extra is not part of the model");
  expect(
      [&](auto& tensors) {
        tensors[matrix + ".scales"] = {DType::kF16, {32, 1}, zeros.data(), 64};
      },
      "is F16 [32, 1], wanted F16 [32, 2]");
  expect(
      [&](auto& tensors) {
        tensors[matrix + ".scales"] = {DType::kBF16, {32, 2}, zeros.data(), 128};
      },
      "is BF16 [32, 2], wanted F16 [32, 2]");
  expect(
      [&](auto& tensors) {
        tensors[matrix + ".zero_points"] = {DType::kU32, {5}, zeros.data(), 20};
      },
      "is U32 [5], wanted U32 [6]");
  expect(
      [&](auto& tensors) {
        tensors[matrix + ".codes"] = {DType::kI32, {32, 6}, zeros.data(), 768};
      },
      "is I32 [32, 6], wanted U32 [32, 6]");
  const std::vector<uint16_t> nans(64, 0x7e00);
  expect(
      [&](auto& tensors) {
        tensors[matrix + ".scales"] = {DType::kF16, {32, 2}, nans.data(), 128};
      },
      "scale at row 0, column 0 is nan");
  const std::vector<float> infinite(32, std::numeric_limits<float>::infinity());
  expect(
      [&](auto& tensors) {
        tensors["model.norm.weight"] = {DType::kF32, {32}, infinite.data(), 128};
      },
      "model.norm.weight: number 0 is inf");
  const std::vector<uint32_t> ones(192, 0xffffffff);
  expect(
      [&](auto& tensors) {
        tensors[matrix + ".codes"] = {DType::kU32, {32, 6}, ones.data(), 768};
      },
      "the filling after the codes of row 0 is not zero");
}

TEST_F(DamageTest, AManifestOfAnotherFormatOrShape) {
  EXPECT_THAT(LoadWith([](Json& json) { json["format"]["group_size"] = 64; }),
              StatusIs(kDamaged, HasSubstr("by the manifest's config and format")));
  EXPECT_THAT(LoadWith([](Json& json) { json["format"]["bits"] = 4; }),
              StatusIs(kDamaged, HasSubstr("by the manifest's config and format")));
  EXPECT_THAT(LoadWith([](Json& json) { json["format"]["symmetric"] = true; }),
              StatusIs(kDamaged, HasSubstr("is not part of the model")));
  EXPECT_THAT(LoadWith([](Json& json) { json["format"]["embedding_bits"] = 16; }),
              StatusIs(kDamaged, HasSubstr("model.embed_tokens.weight is missing")));
  const auto with_bits = [](const Json& bits) {
    return [bits](Json& json) { json["format"]["matrix_bits"] = bits; };
  };
  const std::string name = "model.layers.0.mlp.up_proj.weight";
  EXPECT_THAT(LoadWith(with_bits({{name, 8}})),
              StatusIs(kDamaged, HasSubstr("by the manifest's config and format")));
  EXPECT_THAT(LoadWith(with_bits({{name, 5}})), StatusIs(kDamaged, HasSubstr("is 5, supported")));
  EXPECT_THAT(LoadWith(with_bits({{"model.norm.weight", 4}})),
              StatusIs(kDamaged, HasSubstr("names model.norm.weight, which is no matrix")));
  EXPECT_THAT(LoadWith(with_bits({{"a\n", 4}})),
              StatusIs(kDamaged, HasSubstr("names a\\n, which is no matrix")));
  EXPECT_THAT(LoadWith(with_bits({{name, "4"}})), StatusIs(kDamaged, HasSubstr(name)));
  EXPECT_THAT(LoadWith(with_bits(Json::array())), StatusIs(kDamaged, HasSubstr("matrix_bits")));
  EXPECT_THAT(LoadWith(with_bits(Json::object())), StatusIs(kDamaged, HasSubstr("canonical")));
  EXPECT_THAT(LoadWith([](Json& json) { json["config"]["vocab_size"] = 34; }),
              StatusIs(kDamaged, HasSubstr("wanted U32 [34, 8]")));
  EXPECT_THAT(LoadWith([](Json& json) { json["config"]["tie_word_embeddings"] = false; }),
              StatusIs(kDamaged, HasSubstr("lm_head.weight.codes is missing")));
}

}  // namespace
}  // namespace quern

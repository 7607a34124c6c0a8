#include "core/checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/base/half.h"
#include "core/checkpoint/gguf_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class GgufTest : public testing::Test {
 protected:
  absl::StatusOr<GgufFile> Open(const GgufWriter& writer) {
    const std::string path = directory_.Path("x.gguf");
    if (absl::Status status = WriteFileDurably(path, writer.Finish()); !status.ok()) return status;
    return GgufFile::Open(path);
  }
  TempDirectory directory_;
};

TEST_F(GgufTest, ReadsValuesOfEachType) {
  for (uint32_t version : {2u, 3u}) {
    GgufWriter writer(version);
    writer.String("s", "text");
    writer.Uint32("u32", 7);
    writer.Raw("i8", 1, LittleEndian<int8_t>(-3));
    writer.Raw("u64", 10, LittleEndian<uint64_t>(9));
    writer.Float32("f32", 0.5f);
    writer.Raw("f64", 12, LittleEndian<double>(0.25));
    writer.Bool("yes", true);
    writer.Strings("strings", {"a", "", "ccc"});
    writer.Int32s("ints", {1, -2});
    writer.Float32s("floats", {1.5f});
    ASSERT_OK_AND_ASSIGN(const GgufFile file, Open(writer));
    EXPECT_EQ(*file.String("s"), "text");
    EXPECT_EQ(*file.Int("u32", 0, 10), 7);
    EXPECT_EQ(*file.Int("i8", -10, 10), -3);
    EXPECT_EQ(*file.Int("u64", 0, 10), 9);
    EXPECT_EQ(*file.Number("f32", 0, 1), 0.5);
    EXPECT_EQ(*file.Number("f64", 0, 1), 0.25);
    EXPECT_EQ(*file.BoolOr("yes", false), true);
    EXPECT_THAT(*file.Strings("strings"), ElementsAre("a", "", "ccc"));
    EXPECT_THAT(*file.Ints("ints"), ElementsAre(1, -2));
    EXPECT_THAT(*file.Floats("floats"), ElementsAre(1.5f));
  }
}

TEST_F(GgufTest, TypesAndRangesAreCheckedWhenAsked) {
  GgufWriter writer;
  writer.String("s", "text");
  writer.Uint32("u32", 7);
  writer.Float32("nan", std::nanf(""));
  writer.Raw("odd_bool", 7, LittleEndian<uint8_t>(2));
  writer.Raw("huge", 10, LittleEndian<uint64_t>(UINT64_MAX));
  writer.Strings("strings", {"a"});
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Open(writer));
  EXPECT_THAT(file.String("u32"), StatusIs(kInvalid, HasSubstr("u32: found 7, wanted a string")));
  EXPECT_THAT(file.Int("s", 0, 9), StatusIs(kInvalid, HasSubstr("s: found \"text\"")));
  EXPECT_THAT(file.Int("u32", 8, 9),
              StatusIs(kInvalid, HasSubstr("found 7, wanted an integer in [8, 9]")));
  EXPECT_THAT(file.Int("none", 0, 9), StatusIs(kInvalid, HasSubstr("none: found nothing")));
  EXPECT_THAT(file.Int("huge", 0, INT64_MAX), StatusIs(kInvalid, HasSubstr("above 2^63")));
  EXPECT_THAT(file.Number("nan", 0, 9), StatusIs(kInvalid, HasSubstr("nan: found nan")));
  EXPECT_THAT(file.Number("u32", 0, 9), StatusIs(kInvalid, HasSubstr("u32: found 7")));
  EXPECT_THAT(file.BoolOr("odd_bool", true), StatusIs(kInvalid, HasSubstr("odd_bool")));
  EXPECT_THAT(file.Ints("strings"), StatusIs(kInvalid, HasSubstr("found an array of 1")));
  EXPECT_THAT(file.Floats("strings"), StatusIs(kInvalid, HasSubstr("32-bit floats")));
  EXPECT_THAT(file.Strings("s"), StatusIs(kInvalid, HasSubstr("an array of strings")));
  EXPECT_EQ(*file.IntOr("none", 0, 9, 5), 5);
  EXPECT_FALSE(file.IntOr("s", 0, 9, 5).ok()) << "a fallback is for a missing key only";
}

TEST_F(GgufTest, DequantizesAsTheFormatSays) {
  const std::string d = LittleEndian(FloatToHalf(0.5f));
  const std::string m = LittleEndian(FloatToHalf(-1.0f));
  std::string codes8;
  std::string codes4;
  for (int i = 0; i < 32; ++i) codes8 += LittleEndian(static_cast<int8_t>(4 * i - 64));
  for (int i = 0; i < 16; ++i) codes4 += static_cast<char>(i | (15 - i) << 4);
  GgufWriter writer;
  writer.Tensor("q8", {32}, 8, d + codes8);
  writer.Tensor("q4_0", {32}, 2, d + codes4);
  writer.Tensor("q4_1", {32}, 3, d + m + codes4);
  // The fifth bits of values 0 to 3 and 16.
  writer.Tensor("q5_0", {32}, 6, d + LittleEndian<uint32_t>(0x1000f) + codes4);
  writer.Tensor("bf16", {1}, 30, LittleEndian(FloatToBfloat16(-3.5f)));
  writer.Tensor("f16", {1}, 1, LittleEndian(FloatToHalf(0.125f)));
  writer.Tensor("f32", {2, 3}, 0, std::string(24, '\0'));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, Open(writer));
  EXPECT_THAT(file.tensors().find("f32")->second.shape, ElementsAre(3, 2));
  const auto values = [&](const char* name) {
    const GgufTensor& tensor = file.tensors().find(name)->second;
    std::vector<float> out(static_cast<size_t>(tensor.num_elements()));
    DequantizeGgml(tensor.type, tensor.data, tensor.num_elements(), out.data());
    return out;
  };
  for (int i = 0; i < 32; ++i) {
    const auto at = static_cast<size_t>(i);
    const int code = i < 16 ? i : 31 - i;
    EXPECT_EQ(values("q8")[at], 0.5f * static_cast<float>(4 * i - 64));
    EXPECT_EQ(values("q4_0")[at], 0.5f * static_cast<float>(code - 8));
    const int high = i < 4 || i == 16 ? 16 : 0;
    EXPECT_EQ(values("q5_0")[at], 0.5f * static_cast<float>(code + high - 16));
    EXPECT_EQ(values("q4_1")[at], 0.5f * static_cast<float>(code) - 1);
  }
  EXPECT_THAT(values("bf16"), ElementsAre(-3.5f));
  EXPECT_THAT(values("f16"), ElementsAre(0.125f));
}

TEST_F(GgufTest, AlignmentIsTheFilesOwn) {
  GgufWriter writer;
  writer.Uint32("general.alignment", 8);
  writer.TensorAt("a", {1}, 0, 0);
  writer.TensorAt("b", {1}, 0, 8);
  std::string bytes = writer.Finish();
  bytes.resize((bytes.size() + 7) / 8 * 8, '\0');
  bytes += LittleEndian(1.0f) + std::string(4, '\0') + LittleEndian(2.0f);
  const std::string path = directory_.Path("aligned.gguf");
  ASSERT_OK(WriteFileDurably(path, bytes));
  ASSERT_OK_AND_ASSIGN(const GgufFile file, GgufFile::Open(path));
  float value = 0;
  DequantizeGgml(GgmlType::kF32, file.tensors().find("b")->second.data, 1, &value);
  EXPECT_EQ(value, 2.0f);
}

}  // namespace
}  // namespace quern

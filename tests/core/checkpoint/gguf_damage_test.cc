// Bad GGUF files: each is refused with a code and the reason, and none crashes.

#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr uint32_t kArray = 9;
constexpr uint32_t kString = 8;

struct GgufDamage {
  std::string name;
  std::string bytes;
  std::string message;
  absl::StatusCode code = absl::StatusCode::kDataLoss;
};

void PrintTo(const GgufDamage& value, std::ostream* out) { *out << value.name; }

// The file that `fill` writes.
std::string Written(const std::function<void(GgufWriter&)>& fill) {
  GgufWriter writer;
  fill(writer);
  return writer.Finish();
}

std::string Value(uint32_t type, const std::string& bytes) {
  return Written([&](GgufWriter& writer) { writer.Raw("k", type, bytes); });
}

std::string Tensor(const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset,
                   size_t data_bytes) {
  return Written([&](GgufWriter& writer) {
    writer.Tensor("filler", {data_bytes / 4}, 0, std::string(data_bytes, 'x'));
    writer.TensorAt("t", shape, type, offset);
  });
}

std::string Counts(uint64_t num_tensors, uint64_t num_values) {
  return Written([&](GgufWriter& writer) {
    writer.set_num_tensors(num_tensors);
    writer.set_num_values(num_values);
  });
}

std::string ArrayHead(uint32_t element_type, uint64_t count) {
  return LittleEndian(element_type) + LittleEndian(count);
}

std::vector<GgufDamage> HeaderDamages() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  return {
      {"Empty", "", "not a GGUF file"},
      {"ThreeBytes", "GGU", "not a GGUF file"},
      {"MagicOnly", "GGUF", "truncated: version"},
      {"Safetensors", std::string("\x40\0\0\0\0\0\0\0{}", 10), "not a GGUF file"},
      {"Version1", GgufWriter(1).Finish(), "version 1, supported: 2 and 3", kInvalid},
      {"Version4", GgufWriter(4).Finish(), "version 4", kInvalid},
      {"BigEndian", GgufWriter(0x03000000).Finish(), "big-endian", kInvalid},
      {"CountsCut", GgufWriter().Finish().substr(0, 20), "truncated: number of metadata values"},
      {"TensorsMax", Counts(UINT64_MAX, 0), "18446744073709551615 tensors"},
      {"Tensors100001", Counts(100001, 0), "100001 tensors"},
      {"ValuesMax", Counts(0, UINT64_MAX), "18446744073709551615 metadata values"},
      {"MoreTensorsThanFile", Counts(1, 0), "truncated: tensor name"},
      {"MoreValuesThanFile", Counts(0, 1), "truncated: metadata key"},
  };
}

std::vector<GgufDamage> ValueDamages() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  return {
      {"KeyLong", Written([](GgufWriter& w) { w.Uint32(std::string(513, 'k'), 1); }),
       "metadata key of 513 bytes"},
      {"KeyTwice", Written([](GgufWriter& w) {
         w.Uint32("k", 1);
         w.Uint32("k", 2);
       }),
       "metadata \"k\" occurs twice"},
      {"TypeUnknown", Value(13, ""), "type 13 is not known"},
      {"TypeMax", Value(UINT32_MAX, ""), "type 4294967295 is not known"},
      {"NumberCut", Value(10, "1234"), "truncated"},
      {"StringBeyondFile", Value(kString, LittleEndian<uint64_t>(100) + "abc"),
       "takes 100 bytes, 3 are left"},
      {"StringMax", Value(kString, LittleEndian<uint64_t>(UINT64_MAX)), "18446744073709551615"},
      {"StringWrapping", Value(kString, LittleEndian<uint64_t>(UINT64_MAX - 7)), "at most"},
      {"StringLengthCut", Value(kString, "1234"), "truncated"},
      {"ArrayOfArrays", Value(kArray, ArrayHead(kArray, 1) + ArrayHead(4, 0)), "array of arrays"},
      {"ArrayCountMax", Value(kArray, ArrayHead(4, UINT64_MAX)), "18446744073709551615 elements"},
      {"ArrayProductWraps", Value(kArray, ArrayHead(10, (uint64_t{1} << 61) + 1)), "elements"},
      {"ArrayBeyondFile", Value(kArray, ArrayHead(4, 5) + "1234"), "takes 20 bytes, 4 are left"},
      {"ArrayOfUnknown", Value(kArray, ArrayHead(99, 1)), "element type 99"},
      {"StringsBeyondFile", Value(kArray, ArrayHead(kString, 3) + LittleEndian<uint64_t>(1) + "a"),
       "truncated"},
      {"AlignmentZero", Written([](GgufWriter& w) { w.Uint32("general.alignment", 0); }),
       "general.alignment: found 0", kInvalid},
      {"AlignmentThree", Written([](GgufWriter& w) { w.Uint32("general.alignment", 3); }),
       "power of two"},
      {"AlignmentHuge", Written([](GgufWriter& w) { w.Uint32("general.alignment", 1u << 31); }),
       "general.alignment", kInvalid},
      {"AlignmentAString", Written([](GgufWriter& w) { w.String("general.alignment", "32"); }),
       "general.alignment", kInvalid},
  };
}

std::vector<GgufDamage> TensorDamages() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  return {
      {"TypeQ6K", Tensor({256}, 14, 0, 64), "type Q6_K, supported: F32, F16", kInvalid},
      {"TypeQ5_1", Tensor({32}, 7, 0, 64), "type Q5_1", kInvalid},
      {"TypeRemoved", Tensor({32}, 4, 0, 64), "type number 4", kInvalid},
      {"TypeMax", Tensor({32}, UINT32_MAX, 0, 64), "type number 4294967295", kInvalid},
      {"NoDims", Tensor({}, 0, 32, 64), "0 dimensions"},
      {"FiveDims", Tensor({1, 1, 1, 1, 1}, 0, 32, 64), "5 dimensions"},
      {"DimZero", Tensor({0}, 0, 32, 64), "dimension of 0"},
      {"DimMax", Tensor({UINT64_MAX}, 0, 32, 64), "dimension of 18446744073709551615"},
      {"ProductWraps", Tensor({uint64_t{1} << 32, uint64_t{1} << 32}, 0, 32, 64),
       "larger than the file"},
      {"ProductWrapsTwice",
       Tensor({uint64_t{1} << 40, uint64_t{1} << 40, uint64_t{1} << 40, 16}, 0, 32, 64),
       "larger than the file"},
      {"RowsNotWholeBlocks", Tensor({33}, 8, 32, 128), "33 elements are not whole Q8_0 blocks"},
      {"OffsetUnaligned", Tensor({1}, 0, 33, 64), "offset 33 is not a multiple of 32"},
      {"OffsetMax", Tensor({1}, 0, UINT64_MAX - 31, 64), "truncated"},
      {"OffsetAtEnd", Tensor({1}, 0, 64, 64), "truncated"},
      {"OneElementTooMany", Tensor({9}, 0, 32, 64), "truncated"},
      {"Overlap", Tensor({8}, 0, 32, 128), "overlaps"},
      {"NameLong", Written([](GgufWriter& w) { w.TensorAt(std::string(513, 'n'), {1}, 0, 0); }),
       "tensor name of 513 bytes"},
      {"NameTwice", Written([](GgufWriter& w) {
         w.Tensor("t", {1}, 0, "1234");
         w.Tensor("t", {1}, 0, "1234");
       }),
       "tensor \"t\" occurs twice"},
      {"NoData", Written([](GgufWriter& w) { w.TensorAt("t", {1}, 0, 0); }), "truncated"},
      {"DataCut",
       [] {
         std::string bytes =
             Written([](GgufWriter& w) { w.Tensor("t", {8}, 0, std::string(32, 'x')); });
         bytes.pop_back();
         return bytes;
       }(),
       "truncated"},
  };
}

class GgufDamageTest : public testing::TestWithParam<GgufDamage> {};

TEST_P(GgufDamageTest, IsRefusedWithTheReason) {
  TempDirectory directory;
  const std::string path = directory.Path("damaged.gguf");
  OverwriteFile(path, GetParam().bytes);
  EXPECT_THAT(
      GgufFile::Open(path).status(),
      StatusIs(GetParam().code, AllOf(HasSubstr("damaged.gguf"), HasSubstr(GetParam().message))));
}

constexpr auto kGgufNameOf = [](const testing::TestParamInfo<GgufDamage>& info) {
  return info.param.name;
};
INSTANTIATE_TEST_SUITE_P(Header, GgufDamageTest, testing::ValuesIn(HeaderDamages()), kGgufNameOf);
INSTANTIATE_TEST_SUITE_P(Value, GgufDamageTest, testing::ValuesIn(ValueDamages()), kGgufNameOf);
INSTANTIATE_TEST_SUITE_P(Tensor, GgufDamageTest, testing::ValuesIn(TensorDamages()), kGgufNameOf);

}  // namespace
}  // namespace quern

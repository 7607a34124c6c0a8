// Bad inputs: each is refused with DATA_LOSS, the file's name and what is wrong, and none crashes.

#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "core/safetensors/safetensors.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string WithLength(uint64_t length, const std::string& rest) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(length >> (8 * i));
  return bytes + rest;
}

std::string File(const std::string& header, const std::string& data = "") {
  return WithLength(header.size(), header + data);
}

// A header with one tensor "a" and `data_bytes` of data.
std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets, size_t data_bytes) {
  return File(absl::StrCat(R"({"a":{"dtype":)", dtype, R"(,"shape":)", shape, R"(,"data_offsets":)",
                           offsets, "}}"),
              std::string(data_bytes, 'x'));
}

std::string TwoTensors(const std::string& first, const std::string& second, size_t data_bytes) {
  return File(absl::StrCat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)", first,
                           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)", second, "}}"),
              std::string(data_bytes, 'x'));
}

std::string ManyTensors(int count) {
  std::string header = "{";
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", i,
                    R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  }
  return File(header + "}");
}

std::string Named(const std::string& name) {
  return File(absl::StrCat("{\"", name, R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})"),
              "x");
}

struct Damage {
  std::string name;
  std::string bytes;
  std::string message;
};

void PrintTo(const Damage& value, std::ostream* out) { *out << value.name; }

std::vector<Damage> Damages() {
  const std::string good = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  return {
      {"Empty", "", "0 bytes"},
      {"SevenBytes", "1234567", "7 bytes"},
      {"LengthZero", WithLength(0, "xxxx"), "does not start with '{'"},
      {"LengthOne", WithLength(1, "{"), "not valid JSON"},
      {"Length2To31", WithLength(uint64_t{1} << 31, good), "header length 2147483648"},
      {"Length2To63", WithLength(uint64_t{1} << 63, good), "header length 9223372036854775808"},
      {"LengthMax", WithLength(UINT64_MAX, good), "header length 18446744073709551615"},
      {"LengthBeyondFile", WithLength(good.size() + 5, good + "xxxx"), "truncated: header length"},
      {"Pickle", std::string("\x80\x02}q\x00X\x05\x00\x00", 9) + "abc", "not a safetensors file"},
      {"Zip", "PK\x03\x04 and so on, much longer", "not a safetensors file"},
      {"Gguf", WithLength(0x3'46554747, "rest"), "not a safetensors file"},
      {"Elf",
       "\x7f"
       "ELF\x02\x01\x01 and so on",
       "not a safetensors file"},
      {"HeaderAnArray", File("[1]"), "does not start with '{'"},
      {"ByteOrderMark", File("\xef\xbb\xbf{}"), "does not start with '{'"},
      {"NulInHeader", File(std::string("{}\0", 3)), "NUL"},
      {"InvalidUtf8", Named("\xff"), "not valid JSON"},
      {"TrailingGarbage", File("{}x"), "not valid JSON"},
      {"Depth5", File(R"({"a":{"shape":[[[1]]]}})"), "nested deeper than 4"},
      {"Depth1000000", File("{\"a\":" + std::string(1000000, '[')), "nested deeper than 4"},
      {"TensorTwice",
       File(absl::StrCat(good.substr(0, good.size() - 1), ",", good.substr(1)), "xxxx"),
       "occurs twice"},
      {"KeyTwice",
       File(R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "xxxx"),
       "occurs twice"},
      {"KeyMissing", File(R"({"a":{"dtype":"U8","shape":[4]}})", "xxxx"),
       "data_offsets: found nothing"},
      {"KeyUnknown", File(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}})", "xxxx"),
       "key \"x\" is not known"},
      {"TensorNotAnObject", File(R"({"a":5})"), "wanted an object"},
      {"MetadataANumber", File(R"({"__metadata__":{"a":1}})"), "is not a string"},
      {"MetadataAString", File(R"({"__metadata__":"x"})"), "is not an object"},
      {"DtypeUnknown", OneTensor("\"F8_E4M3\"", "[4]", "[0,4]", 4), "dtype \"F8_E4M3\""},
      {"DtypeANumber", OneTensor("3", "[4]", "[0,4]", 4), "dtype: found 3"},
      {"DimZero", OneTensor("\"U8\"", "[0]", "[0,0]", 0), "shape: found 0"},
      {"DimNegative", OneTensor("\"U8\"", "[-1]", "[0,4]", 4), "shape: found -1"},
      {"DimFraction", OneTensor("\"U8\"", "[4.0]", "[0,4]", 4), "shape: found 4.0"},
      {"DimExponent", OneTensor("\"U8\"", "[1e3]", "[0,1000]", 1000), "shape: found 1000.0"},
      {"Dim2To64", OneTensor("\"U8\"", "[18446744073709551616]", "[0,4]", 4), "does not fit"},
      {"ProductOverflows", OneTensor("\"F32\"", "[4294967296,4294967296]", "[0,0]", 0),
       "more than 2^63 bytes"},
      {"ProductOverflowsTo4", OneTensor("\"U8\"", "[1099511627776,1099511627776,4]", "[0,4]", 4),
       "more than 2^63 bytes"},
      {"NineDims", OneTensor("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]", 1), "9 dimensions"},
      {"ShapeAString", OneTensor("\"U8\"", "\"4\"", "[0,4]", 4), "shape: found \"4\""},
      {"BeginAfterEnd", OneTensor("\"U8\"", "[4]", "[4,0]", 4), "data_offsets [4, 0]"},
      {"BeginNegative", OneTensor("\"U8\"", "[4]", "[-4,0]", 4), "non-negative"},
      {"OffsetsThree", OneTensor("\"U8\"", "[4]", "[0,4,4]", 4), "two non-negative"},
      {"OneByteShort", OneTensor("\"U8\"", "[4]", "[0,3]", 3), "the 4 bytes of dtype and shape"},
      {"OneByteLong", OneTensor("\"U8\"", "[4]", "[0,5]", 5), "the 4 bytes of dtype and shape"},
      {"BeyondFile", OneTensor("\"U8\"", "[4]", "[0,4]", 3), "(truncated)"},
      {"FarBeyondFile", OneTensor("\"U8\"", "[1099511627776]", "[0,1099511627776]", 3),
       "(truncated)"},
      {"HoleAtEnd", OneTensor("\"U8\"", "[4]", "[0,4]", 5), "bytes of no tensor"},
      {"HoleAtStart", OneTensor("\"U8\"", "[4]", "[1,5]", 5), "gap"},
      {"Gap", TwoTensors("[0,4]", "[5,9]", 9), "gap"},
      {"Overlap", TwoTensors("[0,4]", "[3,7]", 7), "overlapping"},
      {"SameBytesTwice", TwoTensors("[0,4]", "[0,4]", 4), "overlapping"},
      {"TooManyTensors", ManyTensors(100001), "100001 tensors"},
      {"NameEmpty", Named(""), "name is empty"},
      {"NameLong", Named(std::string(1 << 20, 'n')), "1048576 bytes"},
      {"NameWithNewline", Named("a\\nb"), "control characters"},
      {"NameWithNul", Named("a\\u0000b"), "control characters"},
  };
}

class SafetensorsDamageTest : public testing::TestWithParam<Damage> {
 protected:
  TempDirectory directory_;
  const std::string path_ = directory_.Path("damaged.safetensors");
};

TEST_P(SafetensorsDamageTest, IsDataLossWithTheReason) {
  OverwriteFile(path_, GetParam().bytes);
  const absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path_);
  EXPECT_THAT(file.status(),
              StatusIs(absl::StatusCode::kDataLoss,
                       AllOf(HasSubstr("damaged.safetensors"), HasSubstr(GetParam().message))));
  EXPECT_LT(file.status().message().size(), 1000u);
}

INSTANTIATE_TEST_SUITE_P(All, SafetensorsDamageTest, testing::ValuesIn(Damages()),
                         [](const auto& info) { return info.param.name; });

TEST(SafetensorsFilesTest, OnlyRegularFilesAreOpened) {
  TempDirectory directory;
  const std::string fifo = directory.Path("fifo.safetensors");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(SafetensorsFile::Open(fifo).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a regular file")));
  EXPECT_THAT(SafetensorsFile::Open(directory.path()).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a regular file")));
  EXPECT_THAT(SafetensorsFile::Open("/dev/zero").status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("/dev/zero")));
  EXPECT_THAT(SafetensorsFile::Open(directory.Path("none")).status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}

TEST(SafetensorsFilesTest, ASparseFileOfATebibyteIsRefusedAtOnce) {
  TempDirectory directory;
  const std::string path = directory.Path("sparse.safetensors");
  OverwriteFile(path, "");
  if (truncate(path.c_str(), off_t{1} << 40) != 0) GTEST_SKIP() << "no file that large here";
  EXPECT_THAT(SafetensorsFile::Open(path).status(),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("does not start with '{'")));
}

// Flipped bits, other bytes, cuts and insertions: an error or an object whose views lie in the
// file.
TEST(SafetensorsFilesTest, MutationsNeverReachOutsideTheFile) {
  TempDirectory directory;
  const std::string path = directory.Path("m.safetensors");
  const std::string good =
      File(absl::StrCat(
               R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,2],)",
               R"("data_offsets":[0,16]},"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}})"),
           std::string(19, 'x'));
  std::mt19937 random(7);
  int num_valid = 0;
  [[maybe_unused]] volatile uint8_t touched_by_sanitizer = 0;
  constexpr int kMutations = 5000;
  for (int i = 0; i < kMutations; ++i) {
    std::string bytes = good;
    const int num_changes = 1 + static_cast<int>(random() % 3);
    for (int k = 0; k < num_changes && !bytes.empty(); ++k) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << (random() % 8)));
          break;
        case 1:
          bytes[at] = static_cast<char>(random());
          break;
        case 2:
          bytes.resize(at);
          break;
        case 3:
          bytes.insert(at, 1, static_cast<char>(random()));
          break;
      }
    }
    OverwriteFile(path, bytes);
    const absl::StatusOr<SafetensorsFile> read = SafetensorsFile::Open(path);
    if (!read.ok()) {
      EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << read.status();
      continue;
    }
    ++num_valid;
    for (const auto& [name, view] : read->tensors()) {
      const auto* data = static_cast<const uint8_t*>(view.data);
      for (size_t byte = 0; byte < view.size_bytes; ++byte) touched_by_sanitizer = data[byte];
    }
  }
  EXPECT_GT(num_valid, 0);
  EXPECT_LT(num_valid, kMutations / 2);
}

}  // namespace
}  // namespace quern

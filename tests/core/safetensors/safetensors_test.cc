#include "core/safetensors/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

class SafetensorsTest : public testing::Test {
 protected:
  std::map<std::string, TensorView> Tensors() {
    return {{"b", {DType::kF32, {2, 3}, floats_.data(), 24}},
            {"a", {DType::kU8, {5}, bytes_.data(), 5}},
            {"scalar", {DType::kI64, {}, &number_, 8}}};
  }

  TempDirectory directory_;
  const std::string path_ = directory_.Path("x.safetensors");
  const std::vector<float> floats_ = {1, 2, 3, 4, 5, 6};
  const std::vector<uint8_t> bytes_ = {9, 8, 7, 6, 5};
  const int64_t number_ = -3;
};

TEST_F(SafetensorsTest, GivesBackWhatWasWritten) {
  ASSERT_OK(WriteSafetensors(path_, Tensors(), {{"format", "pt"}, {"who", "Grüße \"\n"}}));
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path_));
  EXPECT_THAT(file.metadata(), ElementsAre(Pair("format", "pt"), Pair("who", "Grüße \"\n")));
  ASSERT_EQ(file.tensors().size(), 3u);
  for (const auto& [name, wanted] : Tensors()) {
    SCOPED_TRACE(name);
    const TensorView& found = file.tensors().at(name);
    EXPECT_EQ(found.dtype, wanted.dtype);
    EXPECT_EQ(found.shape, wanted.shape);
    ASSERT_EQ(found.size_bytes, wanted.size_bytes);
    EXPECT_EQ(std::memcmp(found.data, wanted.data, wanted.size_bytes), 0);
  }
}

TEST_F(SafetensorsTest, EqualInputGivesEqualBytesAndAlignedData) {
  ASSERT_OK(WriteSafetensors(path_, Tensors(), {}));
  ASSERT_OK_AND_ASSIGN(const std::string first, ReadFile(path_, 1 << 20));
  ASSERT_OK(WriteSafetensors(path_, Tensors(), {}));
  ASSERT_OK_AND_ASSIGN(const std::string second, ReadFile(path_, 1 << 20));
  EXPECT_EQ(first, second);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, first.data(), 8);
  EXPECT_EQ((8 + header_bytes) % 64, 0u);
  EXPECT_EQ(first.size(), 8 + header_bytes + 24 + 5 + 8);
  ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(directory_.path()));
  EXPECT_THAT(names, ElementsAre("x.safetensors")) << "no temporary file stays";
}

TEST_F(SafetensorsTest, HoldsNoTensorsAtAll) {
  ASSERT_OK(WriteSafetensors(path_, {}, {}));
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path_));
  EXPECT_TRUE(file.tensors().empty());
}

TEST_F(SafetensorsTest, ReadsTensorsInAnyOrderOfOffsets) {
  const std::string header = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[3,5]},)"
                             R"("b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   )";
  const uint64_t size = header.size();
  ASSERT_OK(WriteFileDurably(
      path_, std::string(reinterpret_cast<const char*>(&size), 8) + header + "bbbaa"));
  ASSERT_OK_AND_ASSIGN(const SafetensorsFile file, SafetensorsFile::Open(path_));
  EXPECT_EQ(std::memcmp(file.tensors().at("a").data, "aa", 2), 0);
  EXPECT_EQ(std::memcmp(file.tensors().at("b").data, "bbb", 3), 0);
}

TEST_F(SafetensorsTest, ViewsSurviveAMove) {
  ASSERT_OK(WriteSafetensors(path_, Tensors(), {}));
  ASSERT_OK_AND_ASSIGN(SafetensorsFile file, SafetensorsFile::Open(path_));
  const TensorView view = file.tensors().at("b");
  const SafetensorsFile moved = std::move(file);
  EXPECT_EQ(moved.tensors().at("b").data, view.data);
  EXPECT_EQ(std::memcmp(view.data, floats_.data(), 24), 0);
}

TEST_F(SafetensorsTest, WriterRefusesWhatTheReaderWould) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto write = [&](const std::string& name, TensorView view) {
    return WriteSafetensors(path_, {{name, std::move(view)}}, {});
  };
  const TensorView good = {DType::kU8, {5}, bytes_.data(), 5};
  EXPECT_THAT(write("__metadata__", good), StatusIs(kInvalid, HasSubstr("reserved")));
  EXPECT_THAT(write("", good), StatusIs(kInvalid, HasSubstr("empty")));
  EXPECT_THAT(write("\xff", good), StatusIs(kInvalid, HasSubstr("UTF-8")));
  EXPECT_THAT(write(std::string(513, 'x'), good), StatusIs(kInvalid, HasSubstr("513 bytes")));
  EXPECT_THAT(write("a", {DType::kU8, {4}, bytes_.data(), 5}),
              StatusIs(kInvalid, HasSubstr("do not fit")));
  EXPECT_THAT(write("a", {DType::kU8, {0}, bytes_.data(), 0}),
              StatusIs(kInvalid, HasSubstr("do not fit")));
  EXPECT_THAT(WriteSafetensors(path_, {}, {{"k", "\xc3"}}),
              StatusIs(kInvalid, HasSubstr("metadata \"k\"")));
  ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(directory_.path()));
  EXPECT_TRUE(names.empty());
}

TEST_F(SafetensorsTest, FailedWriteLeavesTheOldFile) {
  ASSERT_OK(WriteSafetensors(path_, Tensors(), {}));
  EXPECT_FALSE(WriteSafetensors(path_, {{"", {}}}, {}).ok());
  EXPECT_OK(SafetensorsFile::Open(path_).status());
  EXPECT_THAT(WriteSafetensors(directory_.Path("no/such/x"), Tensors(), {}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no/such")));
}

}  // namespace
}  // namespace quern

#include "core/base/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

class FileTest : public testing::Test {
 protected:
  FileTest() : root_(testing::TempDir() + "/file_test_XXXXXX") {
    EXPECT_NE(mkdtemp(root_.data()), nullptr);
  }
  ~FileTest() override { std::filesystem::remove_all(root_); }
  std::string At(const std::string& name) const { return root_ + "/" + name; }
  std::string root_;
};

TEST_F(FileTest, DurableWriteReplacesWholeFiles) {
  ASSERT_OK(WriteFileDurably(At("a"), "first"));
  ASSERT_OK(WriteFileDurably(At("a"), "second"));
  EXPECT_EQ(ReadFile(At("a"), 100).value(), "second");
  EXPECT_EQ(ListDirectory(root_).value(), std::vector<std::string>{"a"});
}

TEST_F(FileTest, FailedWriteLeavesNothing) {
  EXPECT_THAT(WriteFileDurably(At("missing/a"), "x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("missing/a")));
  ASSERT_OK(CreateDirectories(At("d")));
  EXPECT_FALSE(WriteFileDurably(At("d"), "x").ok());  // a directory is in the way
  EXPECT_EQ(ListDirectory(root_).value(), std::vector<std::string>{"d"});
}

TEST_F(FileTest, ReadIsBoundedAndTakesRegularFilesOnly) {
  ASSERT_OK(WriteFileDurably(At("a"), "12345"));
  EXPECT_EQ(ReadFile(At("a"), 5).value(), "12345");
  EXPECT_THAT(ReadFile(At("a"), 4), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("5")));
  EXPECT_THAT(ReadFile(At("none"), 4), StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(ReadFile(root_, 4),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("regular")));
  ASSERT_EQ(mkfifo(At("fifo").c_str(), 0600), 0);
  EXPECT_THAT(MappedFile::Open(At("fifo")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("regular")));
}

TEST_F(FileTest, MapsBytesAndEmptyFiles) {
  ASSERT_OK(WriteFileDurably(At("a"), "hello"));
  ASSERT_OK(WriteFileDurably(At("empty"), ""));
  ASSERT_OK_AND_ASSIGN(MappedFile file, MappedFile::Open(At("a")));
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.bytes(), "hello");
  EXPECT_EQ(MappedFile::Open(At("empty"))->size_bytes(), 0u);
}

TEST_F(FileTest, ResolveStaysBeneathTheRoot) {
  ASSERT_OK(CreateDirectories(At("root/models")));
  ASSERT_OK(WriteFileDurably(At("root/models/m.gguf"), "x"));
  ASSERT_OK(WriteFileDurably(At("secret"), "x"));
  std::filesystem::create_symlink("models/m.gguf", At("root/inside"));
  std::filesystem::create_symlink("../secret", At("root/outside"));
  std::filesystem::create_symlink(At("secret"), At("root/absolute"));
  const std::string root = At("root");
  const std::string real = std::filesystem::canonical(At("root/models/m.gguf")).string();
  EXPECT_EQ(ResolveBeneath(root, "models/m.gguf").value(), real);
  EXPECT_EQ(ResolveBeneath(root, "inside").value(), real);
  for (const char* bad : {"outside", "absolute"}) {
    EXPECT_THAT(ResolveBeneath(root, bad),
                StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr(bad)));
  }
  for (const std::string& bad :
       {std::string(), std::string("../secret"), std::string("models/../../secret"), At("secret"),
        std::string("a\0b", 3), std::string(10000, 'a')}) {
    EXPECT_THAT(ResolveBeneath(root, bad),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("path")));
  }
  EXPECT_THAT(ResolveBeneath(root, "none"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
}

TEST_F(FileTest, DirectoriesAreMadeAndRemoved) {
  ASSERT_OK(CreateDirectories(At("x/y/z")));
  ASSERT_OK(CreateDirectories(At("x/y/z")));
  struct stat info;
  ASSERT_EQ(stat(At("x").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  ASSERT_OK(RemoveTree(At("x")));
  ASSERT_OK(RemoveTree(At("x")));
  EXPECT_FALSE(ListDirectory(At("x")).ok());
  ASSERT_OK(WriteFileDurably(At("f"), ""));
  EXPECT_THAT(CreateDirectories(At("f")),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not a directory")));
}

}  // namespace
}  // namespace quern

#ifndef QUERN_TESTS_SUPPORT_TEMP_DIRECTORY_H_
#define QUERN_TESTS_SUPPORT_TEMP_DIRECTORY_H_

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "core/base/file.h"

namespace quern {

// A fresh directory, removed with everything in it at the end of the scope. Needs core_base.
class TempDirectory {
 public:
  explicit TempDirectory(const std::string& parent = testing::TempDir())
      : path_(parent + "/quern_XXXXXX") {
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
  }
  ~TempDirectory() { EXPECT_TRUE(RemoveTree(path_).ok()); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string Path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Writes a file without waiting for the disk, which in hundreds of small tests takes minutes. The
// old file goes first: some file systems flush what replaces the content of a file.
inline void OverwriteFile(const std::string& path, const std::string& bytes) {
  unlink(path.c_str());
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  file.close();
  ASSERT_TRUE(file.good()) << path;
}

}  // namespace quern

#endif  // QUERN_TESTS_SUPPORT_TEMP_DIRECTORY_H_

#ifndef QUERN_TESTS_SUPPORT_SCRATCH_DIRECTORY_H_
#define QUERN_TESTS_SUPPORT_SCRATCH_DIRECTORY_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>

namespace quern {

// A fresh directory, removed with everything in it when destroyed.
class ScratchDirectory {
 public:
  ScratchDirectory() : path_(testing::TempDir() + "quern_XXXXXX") {
    EXPECT_NE(mkdtemp(path_.data()), nullptr);
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SUPPORT_SCRATCH_DIRECTORY_H_

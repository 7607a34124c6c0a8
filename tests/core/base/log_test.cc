#include "core/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace quern {
namespace {

TEST(LogTest, TextLineCannotBeForgedByItsContent) {
  testing::internal::CaptureStderr();
  LOG(INFO) << "job="
            << "x\nERROR forged \x1b[31m";
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  EXPECT_THAT(line, testing::Not(testing::HasSubstr("\x1b")));
  EXPECT_THAT(line, testing::HasSubstr("INFO"));
}

TEST(LogTest, JsonLineParses) {
  SetLogFormat(LogFormat::kJson);
  testing::internal::CaptureStderr();
  LOG(WARNING) << "a \"quoted\"\nline \xff";
  const std::string line = testing::internal::GetCapturedStderr();
  SetLogFormat(LogFormat::kText);
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["severity"], "WARNING");
  EXPECT_THAT(json["message"].get<std::string>(), testing::StartsWith("a \"quoted\"\nline "));
  EXPECT_THAT(json["source"].get<std::string>(), testing::StartsWith("log_test.cc:"));
}

TEST(LogDeathTest, FailedCheckSaysWhat) {
  EXPECT_DEATH(CHECK(1 + 1 == 3) << "detail", "check failed: 1 \\+ 1 == 3 detail");
}

}  // namespace
}  // namespace quern

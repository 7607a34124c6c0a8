#ifndef QUERN_TESTS_SUPPORT_STATUS_MATCHERS_H_
#define QUERN_TESTS_SUPPORT_STATUS_MATCHERS_H_

// Matchers for absl::Status and absl::StatusOr with upstream Abseil's names.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace quern {

// What most damaged input is answered with.
inline constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& result) {
  return result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << "status " << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}

// StatusIs(code, message matcher).
MATCHER_P2(StatusIs, code, message, "") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << "status " << status.ToString();
  return status.code() == code &&
         testing::ExplainMatchResult(message, std::string(status.message()), result_listener);
}

}  // namespace quern

#define EXPECT_OK(expression) EXPECT_THAT((expression), ::quern::IsOk())
#define ASSERT_OK(expression) ASSERT_THAT((expression), ::quern::IsOk())
// ASSERT_OK_AND_ASSIGN(auto value, FunctionReturningStatusOr()).
#define ASSERT_OK_AND_ASSIGN(lhs, expression) \
  QUERN_ASSERT_OK_AND_ASSIGN(QUERN_TEST_CONCAT(statusor_, __LINE__), lhs, expression)
#define QUERN_TEST_CONCAT_INNER(a, b) a##b
#define QUERN_TEST_CONCAT(a, b) QUERN_TEST_CONCAT_INNER(a, b)
#define QUERN_ASSERT_OK_AND_ASSIGN(statusor, lhs, expression) \
  auto statusor = (expression);                               \
  ASSERT_TRUE(statusor.ok()) << statusor.status();            \
  lhs = std::move(statusor).value()

#endif  // QUERN_TESTS_SUPPORT_STATUS_MATCHERS_H_

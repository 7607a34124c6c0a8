#ifndef QUERN_TESTS_SERVICES_INFERENCE_OPENAI_CLIENT_H_
#define QUERN_TESTS_SERVICES_INFERENCE_OPENAI_CLIENT_H_

#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/services/common/http_client.h"

namespace quern {

using Json = nlohmann::json;

inline constexpr char kCompletions[] = "/v1/completions";
inline constexpr char kChat[] = "/v1/chat/completions";

struct Answer {
  int status = 0;
  std::string head;
  std::string body;  // chunks joined
  Json json() const { return Json::parse(body); }
};

inline Answer Parse(const std::string& bytes) {
  Answer answer;
  const size_t end = bytes.find("\r\n\r\n");
  EXPECT_NE(end, std::string::npos) << bytes;
  if (end == std::string::npos) return answer;
  answer.head = bytes.substr(0, end);
  EXPECT_TRUE(absl::SimpleAtoi(answer.head.substr(9, 3), &answer.status)) << answer.head;
  std::string rest = bytes.substr(end + 4);
  if (!absl::StrContains(answer.head, "chunked")) {
    answer.body = rest;
    return answer;
  }
  while (!rest.empty()) {
    size_t used = 0;
    const size_t size = std::stoul(rest, &used, 16);
    answer.body += rest.substr(used + 2, size);
    if (size == 0) break;
    rest = rest.substr(used + 2 + size + 2);
  }
  return answer;
}

inline std::string PostBytes(const std::string& path, const std::string& body,
                             const std::string& type = "application/json") {
  return absl::StrCat("POST ", path,
                      " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: ", type,
                      "\r\nContent-Length: ", body.size(), "\r\n\r\n", body);
}

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_INFERENCE_OPENAI_CLIENT_H_

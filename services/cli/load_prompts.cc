#include "services/cli/load_prompts.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>

#include <limits>

#include "core/base/file.h"
#include "core/base/status_macros.h"

namespace quern::cli {
namespace {

constexpr size_t kMaxFileBytes = 256 << 20;
constexpr int kMaxTokens = 131072;

absl::Status ReadPrompt(const JsonObject& line, LoadRequest& request) {
  const Json& prompt = *line.Find("prompt");
  if (prompt.is_string() && !prompt.get_ref<const std::string&>().empty()) {
    request.prompt = prompt.get<std::string>();
    return absl::OkStatus();
  }
  constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
  bool ids = prompt.is_array() && !prompt.empty();
  for (const Json& id : ids ? prompt : Json::array()) {
    ids = ids && id.is_number_unsigned() && id.get<uint64_t>() <= kMaxId;
    if (ids) request.prompt_ids.push_back(id.get<int32_t>());
  }
  if (ids) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(line.where(), ": prompt: wanted a text or an array of token ids, not empty"));
}

absl::Status ReadMessages(const JsonObject& line, LoadRequest& request) {
  ASSIGN_OR_RETURN(const Json* messages, line.Array("messages"));
  if (messages->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(line.where(), ": messages: empty"));
  }
  request.messages = Json::array();
  for (const Json& value : *messages) {
    const std::string where =
        absl::StrCat(line.where(), ": messages[", request.messages.size(), "]");
    ASSIGN_OR_RETURN(const JsonObject message, JsonObject::Of(value, where));
    ASSIGN_OR_RETURN(const std::string role, message.String("role"));
    ASSIGN_OR_RETURN(const std::string content, message.String("content"));
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": role: found \"", role, "\", wanted \"system\", \"user\" or \"assistant\""));
    }
    request.messages.push_back({{"role", role}, {"content", content}});
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadRequest> ReadLine(absl::string_view text, const std::string& where,
                                     int max_tokens) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(text, where));
  ASSIGN_OR_RETURN(const JsonObject line, JsonObject::Of(json, where));
  for (const auto& member : json.items()) {
    if (member.key() != "prompt" && member.key() != "messages" && member.key() != "max_tokens") {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": found \"", member.key(),
                       "\", wanted \"prompt\" or \"messages\", and perhaps \"max_tokens\""));
    }
  }
  if (line.Has("prompt") == line.Has("messages")) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": wanted either \"prompt\" or \"messages\""));
  }
  LoadRequest request;
  if (line.Has("prompt")) {
    RETURN_IF_ERROR(ReadPrompt(line, request));
  } else {
    RETURN_IF_ERROR(ReadMessages(line, request));
  }
  ASSIGN_OR_RETURN(const int64_t tokens, line.IntOr("max_tokens", 1, kMaxTokens, max_tokens));
  request.max_tokens = static_cast<int>(tokens);
  return request;
}

}  // namespace

LoadPrompts LoadPrompts::Random(int prompt_tokens, int max_tokens, uint64_t seed) {
  LoadPrompts prompts;
  prompts.prompt_tokens_ = prompt_tokens;
  prompts.max_tokens_ = max_tokens;
  prompts.random_.seed(seed);
  return prompts;
}

absl::StatusOr<LoadPrompts> LoadPrompts::FromFile(const std::string& path, int max_tokens) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  LoadPrompts prompts;
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    ASSIGN_OR_RETURN(LoadRequest request,
                     ReadLine(line, absl::StrCat(path, ":", number), max_tokens));
    prompts.lines_.push_back(std::move(request));
  }
  if (prompts.lines_.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": no prompts; wanted lines like {\"prompt\": \"Once\"}"));
  }
  return prompts;
}

LoadRequest LoadPrompts::Next() {
  if (!lines_.empty()) return lines_[next_++ % lines_.size()];
  LoadRequest request;
  request.max_tokens = max_tokens_;
  std::uniform_int_distribution<int32_t> id(0, 255);
  for (int i = 0; i < prompt_tokens_; ++i) request.prompt_ids.push_back(id(random_));
  return request;
}

}  // namespace quern::cli

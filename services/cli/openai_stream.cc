#include "services/cli/openai_stream.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include "core/base/status_macros.h"

namespace quern::cli {
namespace {

// Of one line, and of one event.
constexpr size_t kMaxEventBytes = 1 << 20;
constexpr size_t kMaxShownBytes = 200;

bool HasText(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() && !it->get_ref<const std::string&>().empty();
}

// A count that the server names, or -1.
int CountOf(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer()) return -1;
  const int64_t count = it->get<int64_t>();
  return count < 0 || count > (int64_t{1} << 30) ? -1 : static_cast<int>(count);
}

// {"message": ..., "type": ..., "code": a number or a name}
absl::Status ErrorOf(const Json& error) {
  const std::string message = error.is_object() && HasText(error, "message")
                                  ? error.at("message").get<std::string>()
                                  : error.dump();
  absl::StatusCode code = absl::StatusCode::kInternal;
  if (error.is_object()) {
    const int number = CountOf(error, "code");
    if (number >= 400) code = CodeOfHttpStatus(number);
    if (error.value("type", Json()) == "rate_limit_error") {
      code = absl::StatusCode::kResourceExhausted;
    }
  }
  return absl::Status(code, message.substr(0, kMaxShownBytes));
}

}  // namespace

absl::StatusOr<int> OpenAiStream::Feed(absl::string_view bytes) {
  int num_pieces = 0;
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    absl::StrAppend(&line_, bytes.substr(0, end));
    bytes.remove_prefix(end == absl::string_view::npos ? bytes.size() : end + 1);
    if (line_.size() + data_.size() > kMaxEventBytes) {
      return absl::DataLossError(
          absl::StrCat("an event of the stream is longer than ", kMaxEventBytes, " bytes"));
    }
    if (end == absl::string_view::npos) break;
    absl::string_view line = line_;
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty()) {
      if (!data_.empty()) {
        ASSIGN_OR_RETURN(const bool has_text, TakeEvent(data_));
        num_pieces += has_text ? 1 : 0;
      }
      data_.clear();
    } else if (absl::ConsumePrefix(&line, "data:")) {
      absl::ConsumePrefix(&line, " ");
      absl::StrAppend(&data_, data_.empty() ? "" : "\n", line);
    }
    line_.clear();
  }
  return num_pieces;
}

absl::StatusOr<bool> OpenAiStream::TakeEvent(absl::string_view data) {
  if (data == "[DONE]") {
    complete_ = true;
    return false;
  }
  const absl::StatusOr<Json> event = ParseJson(data, "event of the stream");
  if (!event.ok() || !event->is_object()) {
    return absl::DataLossError(
        absl::StrCat("an event of the stream is no JSON object: ", data.substr(0, kMaxShownBytes)));
  }
  const auto error = event->find("error");
  if (error != event->end() && !error->is_null()) return ErrorOf(*error);
  const auto usage = event->find("usage");
  if (usage != event->end() && usage->is_object()) {
    usage_.prompt_tokens = CountOf(*usage, "prompt_tokens");
    usage_.output_tokens = CountOf(*usage, "completion_tokens");
    const auto details = usage->find("prompt_tokens_details");
    if (details != usage->end() && details->is_object()) {
      usage_.cached_prompt_tokens = CountOf(*details, "cached_tokens");
    }
  }
  bool has_text = false;
  const auto choices = event->find("choices");
  if (choices == event->end() || !choices->is_array()) return false;
  for (const Json& choice : *choices) {
    if (!choice.is_object()) continue;
    const auto reason = choice.find("finish_reason");
    if (reason != choice.end() && reason->is_string()) complete_ = true;
    const auto delta = choice.find("delta");
    const bool is_chat = delta != choice.end() && delta->is_object();
    has_text |= is_chat ? HasText(*delta, "content") || HasText(*delta, "reasoning_content") ||
                              HasText(*delta, "reasoning")
                        : HasText(choice, "text");
  }
  return has_text;
}

std::string OpenAiErrorMessage(absl::string_view body) {
  const absl::StatusOr<Json> json = ParseJson(body, "body");
  if (json.ok() && json->is_object() && json->contains("error")) {
    return std::string(ErrorOf(json->at("error")).message());
  }
  return std::string(body.substr(0, kMaxShownBytes));
}

absl::StatusCode CodeOfHttpStatus(int status) {
  switch (status) {
    case 401:
      return absl::StatusCode::kUnauthenticated;
    case 403:
      return absl::StatusCode::kPermissionDenied;
    case 404:
      return absl::StatusCode::kNotFound;
    case 429:
      return absl::StatusCode::kResourceExhausted;
    case 499:
      return absl::StatusCode::kCancelled;
    case 503:
      return absl::StatusCode::kUnavailable;
    case 504:
      return absl::StatusCode::kDeadlineExceeded;
    default:
      return status >= 400 && status < 500 ? absl::StatusCode::kInvalidArgument
                                           : absl::StatusCode::kInternal;
  }
}

}  // namespace quern::cli

#include "services/quantizer/instructions.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <string>
#include <utility>

#include "core/base/status_macros.h"
#include "core/tokenizer/chat.h"
#include "services/quantizer/text_file.h"

namespace quern {
namespace {

absl::Status WrongLine(const std::string& where, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
}

bool IsBlankText(absl::string_view text) { return absl::StripAsciiWhitespace(text).empty(); }

absl::Status CheckKeys(const JsonObject& object, const std::string& where,
                       std::initializer_list<absl::string_view> known) {
  for (const auto& [key, value] : object.json().items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return WrongLine(where, absl::StrCat("has a field \"", key.substr(0, 80),
                                           "\"; wanted messages, or prompt and response"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatMessage> ParseMessage(const Json& json, const std::string& where) {
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, where));
  RETURN_IF_ERROR(CheckKeys(object, where, {"role", "content"}));
  ASSIGN_OR_RETURN(const std::string role, object.String("role"));
  ChatMessage message;
  ASSIGN_OR_RETURN(message.content, object.String("content"));
  if (role == "system") {
    message.role = ChatMessage::Role::kSystem;
  } else if (role == "user") {
    message.role = ChatMessage::Role::kUser;
  } else if (role == "assistant") {
    message.role = ChatMessage::Role::kAssistant;
  } else {
    return WrongLine(where, absl::StrCat("role is \"", role.substr(0, 80),
                                         "\", wanted system, user or assistant"));
  }
  return message;
}

class Renderer {
 public:
  Renderer(const PackedModel& model, const Tokenizer& tokenizer, int max_tokens)
      : model_(model),
        tokenizer_(tokenizer),
        format_(RecognizeChatFormat(model.chat_template, tokenizer)),
        max_tokens_(max_tokens) {
    const std::vector<int32_t> stops = ChatStopIds(format_, tokenizer);
    if (!stops.empty()) {
      end_ = stops.front();
    } else if (!model.config.eos_token_ids.empty()) {
      end_ = model.config.eos_token_ids.front();
    }
  }

  absl::Status AddLine(const JsonObject& object, const std::string& where) {
    if (!object.Has("messages")) return AddPair(object, where);
    RETURN_IF_ERROR(CheckKeys(object, where, {"messages"}));
    ASSIGN_OR_RETURN(const Json* array, object.Array("messages"));
    std::vector<ChatMessage> messages;
    bool answered = false;
    for (size_t i = 0; i < array->size(); ++i) {
      ASSIGN_OR_RETURN(ChatMessage message,
                       ParseMessage((*array)[i], absl::StrCat(where, ": messages[", i, "]")));
      if (message.role == ChatMessage::Role::kAssistant) {
        RETURN_IF_ERROR(AddExample(messages, message.content, where));
        answered = true;
      }
      messages.push_back(std::move(message));
    }
    if (!answered) return WrongLine(where, "has no message of the assistant to learn from");
    return absl::OkStatus();
  }

  Instructions Take() { return std::move(result_); }

 private:
  absl::Status AddPair(const JsonObject& object, const std::string& where) {
    RETURN_IF_ERROR(CheckKeys(object, where, {"prompt", "response"}));
    ASSIGN_OR_RETURN(std::string prompt, object.String("prompt"));
    ASSIGN_OR_RETURN(const std::string response, object.String("response"));
    if (IsBlankText(prompt)) return WrongLine(where, "prompt is blank");
    return AddExample({{ChatMessage::Role::kUser, std::move(prompt)}}, response, where);
  }

  absl::Status AddExample(const std::vector<ChatMessage>& context, const std::string& response,
                          const std::string& where) {
    if (IsBlankText(response)) return WrongLine(where, "a response is blank");
    TuningExample example;
    absl::StatusOr<std::vector<int32_t>> ids =
        RenderChat(format_, model_.chat_template, tokenizer_, context);
    if (!ids.ok()) return WrongLine(where, ids.status().message());
    example.ids = *std::move(ids);
    example.num_context_tokens = static_cast<int>(example.ids.size());
    ASSIGN_OR_RETURN(const std::vector<int32_t> answer,
                     tokenizer_.Encode(response, {.add_special_tokens = false,
                                                  .parse_special_tokens = false,
                                                  .at_start = false}));
    if (example.num_context_tokens >= max_tokens_ || example.ids.empty()) {
      ++result_.num_left_out;
      return absl::OkStatus();
    }
    example.ids.insert(example.ids.end(), answer.begin(), answer.end());
    if (end_ >= 0) example.ids.push_back(end_);
    if (static_cast<int>(example.ids.size()) > max_tokens_) {
      example.ids.resize(static_cast<size_t>(max_tokens_));
      ++result_.num_cut;
    }
    result_.examples.push_back(std::move(example));
    return absl::OkStatus();
  }

  const PackedModel& model_;
  const Tokenizer& tokenizer_;
  const ChatFormat format_;
  const int max_tokens_;
  int32_t end_ = -1;  // what ends a turn; -1: nothing
  Instructions result_;
};

}  // namespace

absl::StatusOr<Instructions> ReadInstructions(absl::string_view path, const PackedModel& model,
                                              const Tokenizer& tokenizer, int max_tokens) {
  Renderer renderer(model, tokenizer, max_tokens);
  RETURN_IF_ERROR(ForEachJsonLine(path, [&](const JsonObject& object, const std::string& where) {
    return renderer.AddLine(object, where);
  }));
  Instructions instructions = renderer.Take();
  if (instructions.examples.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds no example of at most ", max_tokens, " tokens (",
                     instructions.num_left_out, " whose prompts alone are longer)"));
  }
  return instructions;
}

}  // namespace quern

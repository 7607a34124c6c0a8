#include "core/tokenizer/chat.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_replace.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

constexpr absl::string_view kImStart = "<|im_start|>";
constexpr absl::string_view kImEnd = "<|im_end|>";
constexpr absl::string_view kStartHeader = "<|start_header_id|>";
constexpr absl::string_view kEndHeader = "<|end_header_id|>";
constexpr absl::string_view kEndOfTurn = "<|eot_id|>";
constexpr absl::string_view kEndOfMessage = "<|eom_id|>";
constexpr absl::string_view kBeginOfText = "<|begin_of_text|>";

// System messages that ChatML templates add to a conversation that brings none.
constexpr absl::string_view kDefaultSystems[] = {
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant",
};

// What Llama 3.1 and later put before every system message, and the date they take when the caller
// gives none.
constexpr absl::string_view kLlama31Knowledge = "Cutting Knowledge Date: December 2023";
constexpr absl::string_view kLlama31Date = "26 Jul 2024";

// Templates write a newline as itself or as the escape in a string of theirs.
std::string WithPlainNewlines(absl::string_view chat_template) {
  return absl::StrReplaceAll(chat_template, {{"\\n", "\n"}});
}

int32_t SpecialId(const Tokenizer& tokenizer, absl::string_view token) {
  const int32_t id = tokenizer.TokenToId(token);
  return id >= 0 && tokenizer.IsSpecial(id) ? id : -1;
}

bool HasSpecials(const Tokenizer& tokenizer, std::initializer_list<absl::string_view> tokens) {
  return std::all_of(tokens.begin(), tokens.end(),
                     [&](absl::string_view token) { return SpecialId(tokenizer, token) >= 0; });
}

absl::string_view RoleName(ChatMessage::Role role) {
  switch (role) {
    case ChatMessage::Role::kSystem:
      return "system";
    case ChatMessage::Role::kUser:
      return "user";
    case ChatMessage::Role::kAssistant:
      return "assistant";
  }
  return "";
}

// Python's str.strip(), which is what a template's trim filter does.
absl::string_view Trim(absl::string_view text) {
  const auto is_space = [](char32_t c) { return IsUnicodeSpace(c) || (c >= 0x1C && c <= 0x1F); };
  size_t end = 0;  // behind the last character that is not a space
  size_t begin = text.size();
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (!is_space(step.code_point)) {
      begin = std::min(begin, at);
      end = at + step.num_bytes;
    }
    at += step.num_bytes;
  }
  return begin < end ? text.substr(begin, end - begin) : absl::string_view();
}

// A prompt of special tokens and ordinary text in turn.
class PromptWriter {
 public:
  explicit PromptWriter(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // `token` must be a special token.
  void Special(absl::string_view token) { ids_.push_back(SpecialId(tokenizer_, token)); }
  void Id(int32_t id) {
    if (id >= 0) ids_.push_back(id);
  }
  absl::Status Text(absl::string_view text) {
    const Tokenizer::EncodeOptions options = {
        .add_special_tokens = false, .parse_special_tokens = false, .at_start = ids_.empty()};
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer_.Encode(text, options));
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    return absl::OkStatus();
  }
  std::vector<int32_t> Take() { return std::move(ids_); }

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
};

absl::Status CheckMessages(const std::vector<ChatMessage>& messages) {
  if (messages.empty()) {
    return absl::InvalidArgumentError("messages: found none, wanted at least one");
  }
  if (messages.back().role != ChatMessage::Role::kUser) {
    return absl::InvalidArgumentError(absl::StrCat("messages: the last is the ",
                                                   RoleName(messages.back().role),
                                                   "'s, wanted one of the user"));
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const size_t invalid = FindInvalidUtf8(messages[i].content);
    if (invalid != absl::string_view::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "].content: byte ", invalid, " is not UTF-8, wanted UTF-8"));
    }
  }
  return absl::OkStatus();
}

absl::Status RenderChatMl(absl::string_view chat_template, const std::vector<ChatMessage>& messages,
                          const Tokenizer& tokenizer, PromptWriter* prompt) {
  const auto turn = [prompt](absl::string_view role, absl::string_view content) -> absl::Status {
    prompt->Special(kImStart);
    RETURN_IF_ERROR(prompt->Text(absl::StrCat(role, "\n", content)));
    prompt->Special(kImEnd);
    return prompt->Text("\n");
  };
  if (absl::StrContains(chat_template, "bos_token")) prompt->Id(tokenizer.bos_id());
  if (messages.front().role != ChatMessage::Role::kSystem) {
    for (absl::string_view text : kDefaultSystems) {
      if (absl::StrContains(chat_template, absl::StrCat(kImStart, "system\n", text, kImEnd))) {
        RETURN_IF_ERROR(turn("system", text));
        break;
      }
    }
  }
  for (const ChatMessage& message : messages) {
    RETURN_IF_ERROR(turn(RoleName(message.role), message.content));
  }
  prompt->Special(kImStart);
  return prompt->Text("assistant\n");
}

absl::Status RenderLlama3(absl::string_view chat_template, const std::vector<ChatMessage>& messages,
                          const Tokenizer& tokenizer, PromptWriter* prompt) {
  const auto header = [prompt](absl::string_view role) -> absl::Status {
    prompt->Special(kStartHeader);
    RETURN_IF_ERROR(prompt->Text(role));
    prompt->Special(kEndHeader);
    return absl::OkStatus();
  };
  const auto turn = [&](absl::string_view role, absl::string_view content) -> absl::Status {
    RETURN_IF_ERROR(header(role));
    RETURN_IF_ERROR(prompt->Text(absl::StrCat("\n\n", content)));
    prompt->Special(kEndOfTurn);
    return absl::OkStatus();
  };
  const bool trims =
      absl::StrContains(chat_template, "| trim") || absl::StrContains(chat_template, "|trim");
  const auto content = [trims](const ChatMessage& message) {
    return trims ? Trim(message.content) : absl::string_view(message.content);
  };
  const int32_t begin = SpecialId(tokenizer, kBeginOfText);
  prompt->Id(begin >= 0 ? begin : tokenizer.bos_id());
  size_t next = 0;
  if (absl::StrContains(chat_template, kLlama31Knowledge) &&
      absl::StrContains(chat_template, kLlama31Date)) {
    absl::string_view system;
    if (messages.front().role == ChatMessage::Role::kSystem) system = content(messages[next++]);
    RETURN_IF_ERROR(turn(
        "system", absl::StrCat(kLlama31Knowledge, "\nToday Date: ", kLlama31Date, "\n\n", system)));
  }
  for (; next < messages.size(); ++next) {
    RETURN_IF_ERROR(turn(RoleName(messages[next].role), content(messages[next])));
  }
  RETURN_IF_ERROR(header("assistant"));
  return prompt->Text("\n\n");
}

}  // namespace

absl::string_view ChatFormatName(ChatFormat format) {
  switch (format) {
    case ChatFormat::kNone:
      return "none";
    case ChatFormat::kChatMl:
      return "chatml";
    case ChatFormat::kLlama3:
      return "llama3";
  }
  return "none";
}

ChatFormat RecognizeChatFormat(absl::string_view chat_template, const Tokenizer& tokenizer) {
  // The assistant's opening tells the families apart from others that share their markers (Phi-4
  // has <|im_sep|> in its place).
  const std::string text = WithPlainNewlines(chat_template);
  const bool chatml = absl::StrContains(text, absl::StrCat(kImStart, "assistant\n")) &&
                      absl::StrContains(text, kImEnd) && HasSpecials(tokenizer, {kImStart, kImEnd});
  const bool llama3 =
      absl::StrContains(text, absl::StrCat(kStartHeader, "assistant", kEndHeader, "\n\n")) &&
      absl::StrContains(text, kEndOfTurn) &&
      HasSpecials(tokenizer, {kStartHeader, kEndHeader, kEndOfTurn});
  if (chatml == llama3) return ChatFormat::kNone;
  return chatml ? ChatFormat::kChatMl : ChatFormat::kLlama3;
}

absl::StatusOr<std::vector<int32_t>> RenderChat(ChatFormat format, absl::string_view chat_template,
                                                const Tokenizer& tokenizer,
                                                const std::vector<ChatMessage>& messages) {
  RETURN_IF_ERROR(CheckMessages(messages));
  const std::string text = WithPlainNewlines(chat_template);
  PromptWriter prompt(tokenizer);
  switch (format) {
    case ChatFormat::kChatMl:
      if (!HasSpecials(tokenizer, {kImStart, kImEnd})) {
        return absl::FailedPreconditionError(absl::StrCat(
            "chatml: the tokenizer lacks the special tokens ", kImStart, " and ", kImEnd));
      }
      RETURN_IF_ERROR(RenderChatMl(text, messages, tokenizer, &prompt));
      break;
    case ChatFormat::kLlama3:
      if (!HasSpecials(tokenizer, {kStartHeader, kEndHeader, kEndOfTurn})) {
        return absl::FailedPreconditionError(
            absl::StrCat("llama3: the tokenizer lacks the special tokens ", kStartHeader, ", ",
                         kEndHeader, " and ", kEndOfTurn));
      }
      RETURN_IF_ERROR(RenderLlama3(text, messages, tokenizer, &prompt));
      break;
    case ChatFormat::kNone: {
      const std::string joined = absl::StrJoin(
          messages, "\n",
          [](std::string* out, const ChatMessage& message) { out->append(message.content); });
      ASSIGN_OR_RETURN(
          std::vector<int32_t> ids,
          tokenizer.Encode(joined, {.add_special_tokens = false, .parse_special_tokens = false}));
      if (tokenizer.bos_id() >= 0) ids.insert(ids.begin(), tokenizer.bos_id());
      return ids;
    }
  }
  return prompt.Take();
}

std::vector<int32_t> ChatStopIds(ChatFormat format, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  const auto add = [&](absl::string_view token) {
    if (const int32_t id = SpecialId(tokenizer, token); id >= 0) ids.push_back(id);
  };
  if (format == ChatFormat::kChatMl) add(kImEnd);
  if (format == ChatFormat::kLlama3) {
    add(kEndOfTurn);
    add(kEndOfMessage);
  }
  return ids;
}

}  // namespace quern

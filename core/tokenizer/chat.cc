#include "core/tokenizer/chat.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/tokenizer/chat_template.h"

namespace quern {
namespace {

using Role = ChatMessage::Role;
using System = ChatStyle::System;
using Thinking = ChatStyle::Thinking;

// What texts of templates may hold that is a special token of some tokenizers.
constexpr absl::string_view kMarkers[] = {"<|im_start|>",
                                          "<|im_end|>",
                                          "<|start_header_id|>",
                                          "<|end_header_id|>",
                                          "<|eot_id|>",
                                          "<s>",
                                          "</s>",
                                          "[INST]",
                                          "[/INST]",
                                          "[SYSTEM_PROMPT]",
                                          "[/SYSTEM_PROMPT]",
                                          "<start_of_turn>",
                                          "<end_of_turn>",
                                          "<|system|>",
                                          "<|user|>",
                                          "<|assistant|>",
                                          "<|end|>",
                                          "<|endoftext|>",
                                          "<think>",
                                          "</think>"};

constexpr absl::string_view kThinkBegin = "<think>";
constexpr absl::string_view kThinkEnd = "</think>";

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

// Python's str.isspace(), by which its strip() goes.
bool IsPythonSpace(char32_t c) { return IsUnicodeSpace(c) || (c >= 0x1C && c <= 0x1F); }

absl::string_view TrimLeft(absl::string_view text) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    if (!IsPythonSpace(step.code_point)) break;
    text.remove_prefix(step.num_bytes);
  }
  return text;
}

// Python's str.strip(), which is what a template's trim filter does.
absl::string_view Trim(absl::string_view text) {
  text = TrimLeft(text);
  size_t end = 0;  // behind the last character that is not a space
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    at += step.num_bytes;
    if (!IsPythonSpace(step.code_point)) end = at;
  }
  return text.substr(0, end);
}

absl::string_view StripNewlinesLeft(absl::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text;
}

absl::string_view StripNewlinesRight(absl::string_view text) {
  return text.substr(0, text.find_last_not_of('\n') + 1);
}

// The ids of a prompt: of the template's texts and of those that people wrote, in turn.
class PromptWriter {
 public:
  explicit PromptWriter(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void Bos() {
    int32_t id = tokenizer_.bos_id();
    for (absl::string_view token : {"<|begin_of_text|>", "<s>", "<bos>"}) {
      if (id < 0) id = SpecialId(tokenizer_, token);
    }
    if (id >= 0) ids_.push_back(id);
  }

  // A text of the template: markers become special tokens.
  absl::Status Own(absl::string_view text) {
    while (!text.empty()) {
      size_t at = text.size();
      absl::string_view first;
      for (absl::string_view marker : kMarkers) {
        const size_t found = text.find(marker);
        if (found >= at || SpecialId(tokenizer_, marker) < 0) continue;
        at = found;
        first = marker;
      }
      Text(text.substr(0, at));
      text.remove_prefix(at + first.size());
      if (first.empty()) continue;
      RETURN_IF_ERROR(Flush());
      ids_.push_back(SpecialId(tokenizer_, first));
    }
    return absl::OkStatus();
  }

  // Whatever it says, it stays text.
  void Text(absl::string_view text) { absl::StrAppend(&text_, text); }

  absl::StatusOr<std::vector<int32_t>> Finish() {
    RETURN_IF_ERROR(Flush());
    return std::move(ids_);
  }

 private:
  // Text up to here is one run, whoever wrote it: its words may cross the seams.
  absl::Status Flush() {
    absl::string_view text = text_;
    // As where a tokenizer finds the token in text (Phi-3).
    if (!ids_.empty() && tokenizer_.TakesSpaceBehind(ids_.back())) text = TrimLeft(text);
    const Tokenizer::EncodeOptions options = {
        .add_special_tokens = false, .parse_special_tokens = false, .at_start = ids_.empty()};
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer_.Encode(text, options));
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    text_.clear();
    return absl::OkStatus();
  }

  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  std::string text_;  // behind `ids_`
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

// The rules of order that the template would enforce by raising an exception, or by leaving out
// what it has no place for.
absl::Status CheckRoles(const ChatStyle& style, const std::vector<ChatMessage>& messages) {
  const absl::string_view format = ChatFormatName(style.format);
  const size_t begin = messages.front().role == Role::kSystem ? 1 : 0;
  if (begin == 1 && style.system == System::kRefused) {
    return absl::InvalidArgumentError(absl::StrCat(
        "messages[0]: the model's ", format,
        " template takes no system message; put the text into the first message of the user"));
  }
  for (size_t i = begin; i < messages.size(); ++i) {
    if (messages[i].role == Role::kSystem && style.system != System::kTurn) {
      return absl::InvalidArgumentError(
          absl::StrCat("messages[", i, "]: the model's ", format,
                       " template takes a system message only as the first"));
    }
    if (!style.alternates) continue;
    const Role wanted = (i - begin) % 2 == 0 ? Role::kUser : Role::kAssistant;
    if (messages[i].role != wanted) {
      return absl::InvalidArgumentError(absl::StrCat(
          "messages[", i, "]: found one of the ", RoleName(messages[i].role), ", wanted the ",
          RoleName(wanted), "'s: the model's ", format,
          " template takes user and assistant in turn, after an optional system message"));
    }
  }
  return absl::OkStatus();
}

// The last message of the user that asks something, rather than bringing what tools answered.
size_t LastQuestion(const std::vector<ChatMessage>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const std::string& content = messages[i].content;
    const bool answers =
        absl::StartsWith(content, "<tool_response>") && absl::EndsWith(content, "</tool_response>");
    if (messages[i].role == Role::kUser && !answers) return i;
  }
  return messages.size() - 1;
}

// Writes a message of the assistant as reasoning models want to see it: as Qwen's templates, which
// split at every marker and take the last part, or the first.
absl::Status WriteThinking(absl::string_view content, Thinking thinking, bool keep,
                           PromptWriter* prompt) {
  const size_t end = content.rfind(kThinkEnd);
  if (end == absl::string_view::npos) {
    prompt->Text(thinking == Thinking::kDropped ? StripNewlinesLeft(content) : content);
    return absl::OkStatus();
  }
  if (keep) {
    absl::string_view thought = StripNewlinesRight(content.substr(0, content.find(kThinkEnd)));
    if (const size_t begin = thought.rfind(kThinkBegin); begin != absl::string_view::npos) {
      thought.remove_prefix(begin + kThinkBegin.size());
    }
    thought = StripNewlinesRight(StripNewlinesLeft(thought));
    if (!thought.empty()) {
      RETURN_IF_ERROR(prompt->Own("<think>\n"));
      prompt->Text(thought);
      RETURN_IF_ERROR(prompt->Own("\n</think>\n\n"));
    }
  }
  prompt->Text(StripNewlinesLeft(content.substr(end + kThinkEnd.size())));
  return absl::OkStatus();
}

absl::Status WriteTurn(absl::string_view open, absl::string_view content, absl::string_view close,
                       PromptWriter* prompt) {
  RETURN_IF_ERROR(prompt->Own(open));
  prompt->Text(content);
  return prompt->Own(close);
}

// A message of the user, with the system's text before it when there is some.
std::string UserText(const ChatStyle& style, absl::string_view content,
                     const std::optional<absl::string_view>& system) {
  if (!system.has_value()) return std::string(style.trims ? Trim(content) : content);
  if (!style.trims_folded_system) {
    return absl::StrCat(style.fold_open, *system, style.fold_close,
                        style.trims ? Trim(content) : content);
  }
  return std::string(Trim(absl::StrCat(style.fold_open, *system, style.fold_close, content)));
}

// The system turns that do not come from a message, or more than it says.
absl::Status WriteFirstSystem(const ChatStyle& style, std::optional<absl::string_view> system,
                              PromptWriter* prompt) {
  if (!system.has_value() && !style.default_system.empty()) system = style.default_system;
  if (!system.has_value() && style.system_preamble.empty()) return absl::OkStatus();
  if (system.has_value() && system->empty() && style.skips_empty_system) return absl::OkStatus();
  return WriteTurn(style.system_open, absl::StrCat(style.system_preamble, system.value_or("")),
                   style.system_close, prompt);
}

absl::Status WriteConversation(const ChatStyle& style, const std::vector<ChatMessage>& messages,
                               PromptWriter* prompt) {
  const auto trimmed = [](bool trims, absl::string_view content) {
    return trims ? Trim(content) : content;
  };
  if (style.bos) prompt->Bos();
  std::optional<absl::string_view> system;
  size_t next = 0;
  if (messages.front().role == Role::kSystem) system = messages[next++].content;
  if (style.system == System::kTurn) {
    if (system.has_value()) system = trimmed(style.trims, *system);
    RETURN_IF_ERROR(WriteFirstSystem(style, system, prompt));
  }
  const size_t folds_at = style.system == System::kFirstUser  ? next
                          : style.system == System::kLastUser ? messages.size() - 1
                                                              : messages.size();
  const size_t question = LastQuestion(messages);
  for (size_t i = next; i < messages.size(); ++i) {
    const std::string& content = messages[i].content;
    switch (messages[i].role) {
      case Role::kSystem:
        if (content.empty() && style.skips_empty_system) break;
        RETURN_IF_ERROR(WriteTurn(style.system_open, trimmed(style.trims, content),
                                  style.system_close, prompt));
        break;
      case Role::kUser:
        RETURN_IF_ERROR(WriteTurn(style.user_open,
                                  UserText(style, content, i == folds_at ? system : std::nullopt),
                                  style.user_close, prompt));
        break;
      case Role::kAssistant:
        RETURN_IF_ERROR(prompt->Own(style.assistant_open));
        if (style.thinking == Thinking::kKept) {
          prompt->Text(trimmed(style.trims || style.trims_assistant, content));
        } else {
          const bool keep = style.thinking == Thinking::kDroppedBeforeQuestion && i > question;
          RETURN_IF_ERROR(WriteThinking(content, style.thinking, keep, prompt));
        }
        RETURN_IF_ERROR(prompt->Own(style.assistant_close));
        break;
    }
  }
  return prompt->Own(style.answer_open);
}

// The contents joined by newlines, behind BOS.
absl::StatusOr<std::vector<int32_t>> JoinContents(const Tokenizer& tokenizer,
                                                  const std::vector<ChatMessage>& messages) {
  const std::string joined = absl::StrJoin(
      messages, "\n",
      [](std::string* out, const ChatMessage& message) { out->append(message.content); });
  ASSIGN_OR_RETURN(
      std::vector<int32_t> ids,
      tokenizer.Encode(joined, {.add_special_tokens = false, .parse_special_tokens = false}));
  if (tokenizer.bos_id() >= 0) ids.insert(ids.begin(), tokenizer.bos_id());
  return ids;
}

// Those of the style's markers that `tokenizer` has not as special tokens.
std::vector<std::string> MissingMarkers(const ChatStyle& style, const Tokenizer& tokenizer) {
  std::vector<std::string> missing;
  for (const std::string& marker : style.needed) {
    if (SpecialId(tokenizer, marker) < 0) missing.push_back(marker);
  }
  return missing;
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
    case ChatFormat::kLlama2:
      return "llama2";
    case ChatFormat::kMistral:
      return "mistral";
    case ChatFormat::kGemma:
      return "gemma";
    case ChatFormat::kPhi3:
      return "phi3";
    case ChatFormat::kZephyr:
      return "zephyr";
  }
  return "none";
}

ChatFormat RecognizeChatFormat(absl::string_view chat_template, const Tokenizer& tokenizer) {
  const ChatStyle style = ReadChatTemplate(chat_template, tokenizer);
  return MissingMarkers(style, tokenizer).empty() ? style.format : ChatFormat::kNone;
}

absl::StatusOr<std::vector<int32_t>> RenderChat(ChatFormat format, absl::string_view chat_template,
                                                const Tokenizer& tokenizer,
                                                const std::vector<ChatMessage>& messages) {
  RETURN_IF_ERROR(CheckMessages(messages));
  if (format == ChatFormat::kNone) return JoinContents(tokenizer, messages);
  const ChatStyle style = ReadChatTemplate(chat_template, tokenizer);
  if (style.format != format) {
    return absl::FailedPreconditionError(absl::StrCat("chat_template: found ",
                                                      ChatFormatName(style.format), ", wanted ",
                                                      ChatFormatName(format)));
  }
  if (const auto missing = MissingMarkers(style, tokenizer); !missing.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(ChatFormatName(format),
                     ": the tokenizer lacks as special tokens: ", absl::StrJoin(missing, ", ")));
  }
  RETURN_IF_ERROR(CheckRoles(style, messages));
  PromptWriter prompt(tokenizer);
  RETURN_IF_ERROR(WriteConversation(style, messages, &prompt));
  return prompt.Finish();
}

std::vector<int32_t> ChatStopIds(ChatFormat format, const Tokenizer& tokenizer) {
  std::vector<absl::string_view> tokens;
  switch (format) {
    case ChatFormat::kNone:
      break;
    case ChatFormat::kChatMl:
      tokens = {"<|im_end|>"};
      break;
    case ChatFormat::kLlama3:
      tokens = {"<|eot_id|>", "<|eom_id|>"};
      break;
    case ChatFormat::kLlama2:
    case ChatFormat::kMistral:
      tokens = {"</s>"};
      break;
    case ChatFormat::kGemma:
      tokens = {"<end_of_turn>"};
      break;
    case ChatFormat::kPhi3:
      tokens = {"<|end|>", "<|endoftext|>"};
      break;
    case ChatFormat::kZephyr:
      tokens = {"</s>", "<|endoftext|>"};
      break;
  }
  std::vector<int32_t> ids;
  for (absl::string_view token : tokens) {
    if (const int32_t id = SpecialId(tokenizer, token); id >= 0) ids.push_back(id);
  }
  return ids;
}

}  // namespace quern

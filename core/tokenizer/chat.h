#ifndef QUERN_CORE_TOKENIZER_CHAT_H_
#define QUERN_CORE_TOKENIZER_CHAT_H_

// Chat prompts without running the template a model file brings: its text is recognised, and a
// renderer of ours writes the prompt.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"

namespace quern {

struct ChatMessage {
  enum class Role { kSystem, kUser, kAssistant };
  Role role = Role::kUser;
  std::string content;
};

enum class ChatFormat {
  kNone,     // raw completion: no known template
  kChatMl,   // <|im_start|>role\ncontent<|im_end|>\n (SmolLM2, Qwen)
  kLlama3,   // <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>
  kLlama2,   // <s>[INST] <<SYS>>\nsystem\n<</SYS>>\n\ncontent [/INST] content </s>
  kMistral,  // <s>[INST] content[/INST] content</s>, with the spaces of its version
  kGemma,    // <start_of_turn>role\ncontent<end_of_turn>\n
  kPhi3,     // <|role|>\ncontent<|end|>\n
  kZephyr,   // <|role|>\ncontent</s>\n (Zephyr, TinyLlama)
};

// "none", "chatml", "llama3", "llama2", "mistral", "gemma", "phi3", "zephyr".
absl::string_view ChatFormatName(ChatFormat format);

// Recognises the family by the expressions in `chat_template`, and only when the tokenizer has the
// family's markers as special tokens; kNone otherwise.
ChatFormat RecognizeChatFormat(absl::string_view chat_template, const Tokenizer& tokenizer);

// Token ids of the conversation followed by the assistant's opening. Text in messages never
// becomes a special token. Where the model's own template text (`chat_template`) adds a default
// system message (SmolLM2, Qwen2.5), dates (Llama 3.1) or a BOS, trims contents, drops what an
// assistant thought in earlier turns (Qwen3), or joins the system message to one of the user
// (Llama 2, Mistral, Gemma 3), so does this.
// kNone: the contents joined by newlines, with the tokenizer's BOS. INVALID_ARGUMENT when there is
// no message, the last is not the user's, a content is not UTF-8, or the roles are not in an order
// that the template takes: it wants user and assistant in turn, or no system message, or one only
// at the beginning. FAILED_PRECONDITION when `chat_template` is not of `format`, or the tokenizer
// lacks its markers.
absl::StatusOr<std::vector<int32_t>> RenderChat(ChatFormat format, absl::string_view chat_template,
                                                const Tokenizer& tokenizer,
                                                const std::vector<ChatMessage>& messages);

// Ids that end an assistant's turn in `format` (<|im_end|>, <|eot_id|>, </s> and so on), beside the
// model's EOS.
std::vector<int32_t> ChatStopIds(ChatFormat format, const Tokenizer& tokenizer);

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_CHAT_H_

#include "core/tokenizer/chat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/core/tokenizer/fixtures.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using Role = ChatMessage::Role;
using testing::HasSubstr;

constexpr char kSmolLm2Template[] =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}";

// Newlines as escapes, as in files whose template is JSON text twice over.
constexpr char kPlainChatMlTemplate[] =
    R"({% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}})"
    R"({% endfor %}{{ '<|im_start|>assistant\n' }})";

constexpr char kQwen25Template[] =
    R"({%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\n' + messages[0]['content'])"
    R"( + '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.)"
    R"( You are a helpful assistant.<|im_end|>\n' }}{%- endif %}{{- '<|im_start|>assistant\n' }})";

constexpr char kLlama3Template[] =
    R"({% set loop_messages = messages %}{% for message in loop_messages %}{% set content = )"
    R"('<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim)"
    R"( + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %})"
    R"({{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }})";

constexpr char kLlama31Template[] =
    R"({%- set date_string = "26 Jul 2024" %}{%- set system_message = messages[0]['content']|trim %})"
    R"({{- "Cutting Knowledge Date: December 2023\n" }}{{- "Today Date: " + date_string + "\n\n" }})"
    R"({{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + '<|eot_id|>' }})"
    R"({{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }})";

class Chat : public testing::Test {
 protected:
  // The prompt as text, special tokens written out.
  std::string Prompt(const std::string& chat_template, const std::vector<ChatMessage>& messages) {
    const ChatFormat format = RecognizeChatFormat(chat_template, *tokenizer_);
    const auto ids = RenderChat(format, chat_template, *tokenizer_, messages);
    EXPECT_OK(ids);
    return ids.ok() ? tokenizer_->Decode(*ids, /*keep_special=*/true) : "";
  }

  std::shared_ptr<const Tokenizer> tokenizer_ = MakeTokenizer(
      ByteLevelJson({}, {"<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
                         "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"}));
};

TEST_F(Chat, RecognizesByTheAssistantsOpening) {
  const Tokenizer& tokenizer = *tokenizer_;
  EXPECT_EQ(RecognizeChatFormat(kSmolLm2Template, tokenizer), ChatFormat::kChatMl);
  EXPECT_EQ(RecognizeChatFormat(kPlainChatMlTemplate, tokenizer), ChatFormat::kChatMl);
  EXPECT_EQ(RecognizeChatFormat(kQwen25Template, tokenizer), ChatFormat::kChatMl);
  EXPECT_EQ(RecognizeChatFormat(kLlama3Template, tokenizer), ChatFormat::kLlama3);
  EXPECT_EQ(RecognizeChatFormat(kLlama31Template, tokenizer), ChatFormat::kLlama3);
}

TEST_F(Chat, OtherTemplatesAreNotRecognized) {
  const std::string both = std::string(kSmolLm2Template) + kLlama3Template;
  for (const std::string& other :
       {std::string(), both,
        std::string("{{'<|user|>\n' + message['content'] + '<|end|>\n<|assistant|>\n'}}"),
        // Phi-4: ChatML's markers, another form.
        std::string("{{'<|im_start|>user<|im_sep|>' + m['content'] + '<|im_end|>'}}"
                    "{{'<|im_start|>assistant<|im_sep|>'}}")}) {
    EXPECT_EQ(RecognizeChatFormat(other, *tokenizer_), ChatFormat::kNone) << other;
  }
}

TEST_F(Chat, NeedsTheMarkersAsSpecialTokens) {
  const auto without = MakeTokenizer(ByteLevelJson({}, {"<|im_start|>"}));
  EXPECT_EQ(RecognizeChatFormat(kSmolLm2Template, *without), ChatFormat::kNone);
  Json json = ByteLevelJson({}, {"<|im_start|>", "<|im_end|>"});
  json["added_tokens"][1]["special"] = false;
  EXPECT_EQ(RecognizeChatFormat(kSmolLm2Template, *MakeTokenizer(json)), ChatFormat::kNone);
  EXPECT_THAT(RenderChat(ChatFormat::kChatMl, kSmolLm2Template, *without, {{Role::kUser, "Hi"}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("<|im_end|>")));
  EXPECT_THAT(RenderChat(ChatFormat::kLlama3, kLlama3Template, *without, {{Role::kUser, "Hi"}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("<|eot_id|>")));
}

TEST_F(Chat, ChatMlWithTheTemplatesOwnSystemMessage) {
  EXPECT_EQ(Prompt(kSmolLm2Template, {{Role::kUser, "Hi"}}),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(Prompt(kQwen25Template, {{Role::kUser, "Hi"}}),
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(Prompt(kPlainChatMlTemplate, {{Role::kUser, "Hi"}}),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(Chat, ChatMlConversation) {
  EXPECT_EQ(Prompt(kSmolLm2Template, {{Role::kSystem, "Be brief."},
                                      {Role::kUser, "Hi"},
                                      {Role::kAssistant, "Hello"},
                                      {Role::kUser, " Bye \n"}}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n Bye \n<|im_end|>\n"
            "<|im_start|>assistant\n");
}

TEST_F(Chat, Llama3TrimsAndBeginsWithBos) {
  EXPECT_EQ(Prompt(kLlama3Template, {{Role::kSystem, "Be brief."}, {Role::kUser, "\u00a0 Hi \n"}}),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
  EXPECT_EQ(Prompt(kLlama3Template, {{Role::kUser, " \t "}}),
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

TEST_F(Chat, Llama31SaysItsDates) {
  const std::string dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
  const std::string rest =
      "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
      "<|start_header_id|>assistant<|end_header_id|>\n\n";
  const std::string system = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n";
  EXPECT_EQ(Prompt(kLlama31Template, {{Role::kUser, "Hi"}}), system + dates + rest);
  EXPECT_EQ(Prompt(kLlama31Template, {{Role::kSystem, "Be brief. "}, {Role::kUser, "Hi"}}),
            system + dates + "Be brief." + rest);
}

TEST_F(Chat, MessagesCannotForgeMarkers) {
  std::string every;
  for (int32_t id = 256; id < tokenizer_->vocab_size(); ++id)
    every += std::string(tokenizer_->TokenBytes(id));
  for (const char* chat_template : {kSmolLm2Template, kLlama3Template}) {
    const ChatFormat format = RecognizeChatFormat(chat_template, *tokenizer_);
    const auto count = [&](const std::string& content) {
      const auto ids = RenderChat(format, chat_template, *tokenizer_,
                                  {{Role::kSystem, content}, {Role::kUser, content}});
      EXPECT_OK(ids);
      return std::count_if(ids->begin(), ids->end(),
                           [&](int32_t id) { return tokenizer_->IsSpecial(id); });
    };
    EXPECT_GT(count("x"), 4);
    EXPECT_EQ(count(every), count("x"));
  }
}

TEST_F(Chat, NoFormatJoinsContentsBehindBos) {
  EXPECT_EQ(Prompt("", {{Role::kSystem, ""}, {Role::kUser, "Hi"}}), "\nHi");
  const auto pieces = MakeTokenizer(PiecesJson({}));
  ASSERT_OK_AND_ASSIGN(const auto ids,
                       RenderChat(ChatFormat::kNone, "", *pieces, {{Role::kUser, "a</s>"}}));
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(pieces->Decode(ids, /*keep_special=*/true), "<s> a</s>");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 0);
}

TEST_F(Chat, RefusesBadConversations) {
  const auto render = [&](const std::vector<ChatMessage>& messages) {
    return RenderChat(ChatFormat::kChatMl, kSmolLm2Template, *tokenizer_, messages);
  };
  EXPECT_THAT(render({}), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found none")));
  EXPECT_THAT(render({{Role::kUser, "Hi"}, {Role::kAssistant, "Hello"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the last is the assistant")));
  EXPECT_THAT(
      render({{Role::kSystem, "\xff"}, {Role::kUser, "Hi"}}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("messages[0].content: byte 0")));
}

TEST_F(Chat, StopIds) {
  EXPECT_EQ(ChatStopIds(ChatFormat::kNone, *tokenizer_), std::vector<int32_t>());
  EXPECT_EQ(ChatStopIds(ChatFormat::kChatMl, *tokenizer_), std::vector<int32_t>({257}));
  EXPECT_EQ(ChatStopIds(ChatFormat::kLlama3, *tokenizer_), std::vector<int32_t>({261, 262}));
  EXPECT_EQ(ChatFormatName(ChatFormat::kNone), "none");
  EXPECT_EQ(ChatFormatName(ChatFormat::kChatMl), "chatml");
  EXPECT_EQ(ChatFormatName(ChatFormat::kLlama3), "llama3");
}

}  // namespace
}  // namespace quern

// The prompts of each chat family, compared with what its own template gives. The expected texts
// are those of Jinja2 (with the settings of transformers: trim_blocks, lstrip_blocks) and the
// templates of the models that are named; the templates here are the expressions of those that
// decide.

#include <absl/strings/str_cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/tokenizer/chat.h"
#include "core/tokenizer/chat_template.h"
#include "tests/core/tokenizer/fixtures.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using Role = ChatMessage::Role;
using testing::HasSubstr;

constexpr char kAlternation[] =
    R"({% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception()"
    R"('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %})";

// meta-llama/Llama-2-7b-chat-hf
const std::string kLlama2 = absl::StrCat(
    R"({% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %})",
    kAlternation,
    R"({% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %})"
    R"({% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }})"
    R"({% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }})");

// mistralai/Mistral-7B-Instruct-v0.2, as it came first
const std::string kMistralFirst = absl::StrCat(
    "{{ bos_token }}", kAlternation,
    R"({% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }})"
    R"({% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}})"
    R"({% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %})");

// mistralai/Mistral-7B-Instruct-v0.2, "v1"
const std::string kMistralV1 =
    absl::StrCat("{%- if messages[0]['role'] == 'system' %}\n\n{{- bos_token }}", kAlternation,
                 R"({%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\n\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token}})");

// mistralai/Mistral-7B-Instruct-v0.3 and Mistral-Large-Instruct-2407, "v3"
const std::string kMistralV3 = absl::StrCat(
    "{%- if messages[0][\"role\"] == \"system\" %}{#- Checks 'roles' #}{{- bos_token }}",
    kAlternation,
    R"({%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}})");

// mistralai/Mistral-Nemo-Instruct-2407, "v3-tekken"
const std::string kMistralTekken =
    absl::StrCat("{%- if messages[0][\"role\"] == \"system\" %}{{- bos_token }}", kAlternation,
                 R"({%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token}})");

// mistralai/Mistral-Large-Instruct-2411, "v7"
constexpr char kMistralV7[] =
    R"({{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %})"
    R"({{ '[INST] ' + message['content'] + '[/INST]' }}{% elif message['role'] == 'system' %})"
    R"({{ '[SYSTEM_PROMPT] ' + message['content'] + '[/SYSTEM_PROMPT]' }})"
    R"({% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }})";

// google/gemma-2-2b-it
const std::string kGemma2 = absl::StrCat(
    R"({{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not)"
    R"( supported') }}{% endif %})",
    kAlternation,
    R"({% set role = 'model' %}{{ '<start_of_turn>' + role + ')"
    "\n"
    R"(' + message['content'] | trim + '<end_of_turn>)"
    "\n"
    R"(' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model)"
    "\n'}}{% endif %}");

// google/gemma-3-1b-it
const std::string kGemma3 = absl::StrCat(
    "{{ bos_token }}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}",
    kAlternation,
    R"({{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%})");

// microsoft/Phi-3.5-mini-instruct
constexpr char kPhi35[] =
    "{% if message['role'] == 'system' and message['content'] %}{{'<|system|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + "
    "message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n'"
    " + message['content'] + '<|end|>\n'}}{% endif %}{{ '<|assistant|>\n' }}";

// microsoft/Phi-3-mini-4k-instruct, as it came first
constexpr char kPhi3First[] =
    "{{ bos_token }}{% if (message['role'] == 'user') %}{{'<|user|>' + '\n' + message['content'] + "
    "'<|end|>' + '\n' + '<|assistant|>' + '\n'}}{% elif (message['role'] == 'assistant') %}"
    "{{message['content'] + '<|end|>' + '\n'}}{% endif %}";

// microsoft/Phi-3-small-8k-instruct
constexpr char kPhi3Small[] =
    "{{ bos_token }}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}";

// HuggingFaceH4/zephyr-7b-beta, TinyLlama/TinyLlama-1.1B-Chat-v1.0
constexpr char kZephyr[] =
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor "
    "%}";

// Qwen/Qwen3-0.6B
constexpr char kQwen3[] =
    R"({{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith()"
    R"('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
            {%- if '</think>' in message.content %}
                {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {{- '<|im_end|>\n' }}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }})";

// Qwen/QwQ-32B
constexpr char kQwq[] =
    R"({%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {{- '<|im_start|>assistant\n<think>\n' }})";

const std::vector<std::string> kSpecials = {"<s>",
                                            "</s>",
                                            "[INST]",
                                            "[/INST]",
                                            "[SYSTEM_PROMPT]",
                                            "[/SYSTEM_PROMPT]",
                                            "<bos>",
                                            "<|end|>",
                                            "<start_of_turn>",
                                            "<end_of_turn>",
                                            "<|system|>",
                                            "<|user|>",
                                            "<|assistant|>",
                                            "<|im_start|>",
                                            "<|im_end|>"};

class ChatFamilies : public testing::Test {
 protected:
  static std::shared_ptr<const Tokenizer> Make(const std::string& bos) {
    std::vector<std::string> specials = kSpecials;
    if (bos != "<s>") specials.erase(specials.begin());
    return MakeTokenizer(ByteLevelJson({}, specials));
  }
  static absl::StatusOr<std::vector<int32_t>> Render(const Tokenizer& tokenizer,
                                                     const std::string& chat_template,
                                                     const std::vector<ChatMessage>& messages) {
    return RenderChat(RecognizeChatFormat(chat_template, tokenizer), chat_template, tokenizer,
                      messages);
  }
  // The prompt as text, special tokens written out.
  std::string Prompt(const std::string& chat_template, const std::vector<ChatMessage>& messages) {
    const Tokenizer& tokenizer =
        chat_template.find("<start_of_turn>") == std::string::npos ? *tokenizer_ : *gemma_;
    const auto ids = Render(tokenizer, chat_template, messages);
    EXPECT_OK(ids);
    return ids.ok() ? tokenizer.Decode(*ids, /*keep_special=*/true) : "";
  }

  const std::shared_ptr<const Tokenizer> tokenizer_ = Make("<s>");
  const std::shared_ptr<const Tokenizer> gemma_ = Make("<bos>");
  const std::vector<ChatMessage> without_system_ = {
      {Role::kUser, " Hi "}, {Role::kAssistant, " Hello "}, {Role::kUser, "Bye"}};
  const std::vector<ChatMessage> with_system_ = {{Role::kSystem, "Be brief."},
                                                 {Role::kUser, " Hi "},
                                                 {Role::kAssistant, " Hello "},
                                                 {Role::kUser, "Bye"}};
};

TEST_F(ChatFamilies, AreRecognized) {
  const Tokenizer& tokenizer = *tokenizer_;
  EXPECT_EQ(RecognizeChatFormat(kLlama2, tokenizer), ChatFormat::kLlama2);
  for (const std::string& text :
       {kMistralFirst, kMistralV1, kMistralV3, kMistralTekken, std::string(kMistralV7)}) {
    EXPECT_EQ(RecognizeChatFormat(text, tokenizer), ChatFormat::kMistral) << text;
  }
  for (const std::string& text : {kGemma2, kGemma3}) {
    EXPECT_EQ(RecognizeChatFormat(text, tokenizer), ChatFormat::kGemma) << text;
  }
  for (const char* text : {kPhi35, kPhi3First, kPhi3Small}) {
    EXPECT_EQ(RecognizeChatFormat(text, tokenizer), ChatFormat::kPhi3) << text;
  }
  EXPECT_EQ(RecognizeChatFormat(kZephyr, tokenizer), ChatFormat::kZephyr);
  EXPECT_EQ(RecognizeChatFormat(kQwen3, tokenizer), ChatFormat::kChatMl);
  EXPECT_EQ(RecognizeChatFormat(kQwq, tokenizer), ChatFormat::kChatMl);
}

TEST_F(ChatFamilies, TemplatesWithOtherWaysAreNotRecognized) {
  const std::string vigogne =  // a default system message, as some Llama 2 models have it
      absl::StrCat("{% elif true == true and not '<<SYS>>' in messages[0]['content'] %}", kLlama2);
  const std::string dated =  // Mistral Small 3's default system message has today's date
      absl::StrCat(
          "{% if messages[0]['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + system_prompt + "
          "'[/SYSTEM_PROMPT]' }}",
          kMistralFirst);
  const std::string smollm3 = absl::StrCat("{{- \"## Metadata\\n\\n\" -}}", kQwen3);
  const std::string macros = absl::StrCat("{%- macro render(content) %}", kQwen3);  // Qwen3.5
  const std::string two = absl::StrCat(kGemma2, kPhi35);
  // Phi-4-mini: no newline behind a role.
  const std::string phi4_mini =
      "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{{ '<|assistant|>' }}";
  for (const std::string& text : {vigogne, dated, smollm3, macros, two, phi4_mini}) {
    EXPECT_EQ(RecognizeChatFormat(text, *tokenizer_), ChatFormat::kNone) << text;
  }
}

TEST_F(ChatFamilies, Llama2) {
  EXPECT_EQ(
      Prompt(kLlama2, with_system_),
      "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello </s><s>[INST] Bye [/INST]");
  EXPECT_EQ(Prompt(kLlama2, without_system_),
            "<s>[INST] Hi [/INST] Hello </s><s>[INST] Bye [/INST]");
}

TEST_F(ChatFamilies, MistralWithTheSpacesOfItsVersions) {
  EXPECT_EQ(Prompt(kMistralFirst, without_system_),
            "<s>[INST]  Hi  [/INST] Hello </s>[INST] Bye [/INST]");
  EXPECT_EQ(Prompt(kMistralV1, with_system_),
            "<s> [INST] Be brief.\n\n Hi  [/INST]  Hello </s> [INST] Bye [/INST]");
  EXPECT_EQ(Prompt(kMistralV3, with_system_),
            "<s>[INST]  Hi [/INST] Hello</s>[INST] Be brief.\n\nBye[/INST]");
  EXPECT_EQ(Prompt(kMistralTekken, with_system_),
            "<s>[INST] Hi [/INST] Hello </s>[INST]Be brief.\n\nBye[/INST]");
  EXPECT_EQ(Prompt(kMistralTekken, without_system_),
            "<s>[INST] Hi [/INST] Hello </s>[INST]Bye[/INST]");
  EXPECT_EQ(Prompt(kMistralV7, with_system_),
            "<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST]  Hi [/INST]  Hello </s>"
            "[INST] Bye[/INST]");
}

TEST_F(ChatFamilies, Gemma) {
  const std::string rest =
      "Hi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n<start_of_turn>user\nBye"
      "<end_of_turn>\n<start_of_turn>model\n";
  EXPECT_EQ(Prompt(kGemma2, without_system_), "<bos><start_of_turn>user\n" + rest);
  EXPECT_EQ(Prompt(kGemma3, without_system_), "<bos><start_of_turn>user\n" + rest);
  EXPECT_EQ(Prompt(kGemma3, with_system_), "<bos><start_of_turn>user\nBe brief.\n\n" + rest);
}

TEST_F(ChatFamilies, Phi3) {
  const std::string rest =
      "<|user|>\n Hi <|end|>\n<|assistant|>\n Hello <|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n";
  EXPECT_EQ(Prompt(kPhi35, with_system_), "<|system|>\nBe brief.<|end|>\n" + rest);
  EXPECT_EQ(Prompt(kPhi35, {{Role::kSystem, ""}, {Role::kUser, "Hi"}}),
            "<|user|>\nHi<|end|>\n<|assistant|>\n");
  EXPECT_EQ(Prompt(kPhi3Small, with_system_), "<s><|system|>\nBe brief.<|end|>\n" + rest);
  EXPECT_EQ(Prompt(kPhi3First, without_system_), "<s>" + rest);
}

// Phi-3's markers take the white space behind them where its tokenizer finds them in a text.
TEST_F(ChatFamilies, MarkersTakeTheSpaceBehindThem) {
  Json json = ByteLevelJson({}, kSpecials);
  for (Json& token : json["added_tokens"]) {
    if (token["content"] == "<|user|>" || token["content"] == "<|end|>") token["rstrip"] = true;
  }
  const auto tokenizer = MakeTokenizer(json);
  ASSERT_OK_AND_ASSIGN(const auto ids, Render(*tokenizer, kPhi35, {{Role::kUser, " Hi "}}));
  EXPECT_EQ(tokenizer->Decode(ids, /*keep_special=*/true), "<|user|>Hi <|end|><|assistant|>\n");
  EXPECT_EQ(ids, Ids(*tokenizer, "<|user|>\n Hi <|end|>\n<|assistant|>\n"));
}

TEST_F(ChatFamilies, Zephyr) {
  EXPECT_EQ(Prompt(kZephyr, with_system_),
            "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\n Hello </s>\n"
            "<|user|>\nBye</s>\n<|assistant|>\n");
  // StableLM Zephyr
  const auto stablelm = MakeTokenizer(ByteLevelJson({}, {"<|endoftext|>"}));
  ASSERT_OK_AND_ASSIGN(const auto ids, Render(*stablelm, kZephyr, {{Role::kUser, "Hi"}}));
  EXPECT_EQ(stablelm->Decode(ids, /*keep_special=*/true),
            "<|user|>\nHi<|endoftext|>\n<|assistant|>\n");
  EXPECT_EQ(ChatStopIds(ChatFormat::kZephyr, *stablelm), std::vector<int32_t>({256}));
}

TEST_F(ChatFamilies, ThoughtsOfEarlierTurnsAreDropped) {
  const auto conversation = [](const std::string& answer, const std::string& last) {
    return std::vector<ChatMessage>(
        {{Role::kUser, "q"}, {Role::kAssistant, answer}, {Role::kUser, last}});
  };
  const std::string thoughts = "<think>\nhm\n</think>\n\nans";
  const auto expected = [](const std::string& answer, const std::string& last) {
    return absl::StrCat("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", answer,
                        "<|im_end|>\n<|im_start|>user\n", last,
                        "<|im_end|>\n<|im_start|>assistant\n");
  };
  EXPECT_EQ(Prompt(kQwen3, conversation(thoughts, "r")), expected("ans", "r"));
  EXPECT_EQ(Prompt(kQwen3, conversation("\nplain", "r")), expected("\nplain", "r"));
  // Qwen3 keeps them while tools answer, QwQ does not, and opens the thinking itself.
  const std::string tool = "<tool_response>\n1\n</tool_response>";
  EXPECT_EQ(Prompt(kQwen3, conversation(thoughts, tool)), expected(thoughts, tool));
  EXPECT_EQ(Prompt(kQwen3, conversation("<think>\n\n</think>\n\nans", tool)),
            expected("ans", tool));
  EXPECT_EQ(Prompt(kQwq, conversation(thoughts, tool)), expected("ans", tool) + "<think>\n");
  EXPECT_EQ(Prompt(kQwq, conversation("\nplain", "r")), expected("plain", "r") + "<think>\n");
}

TEST_F(ChatFamilies, RefuseWhatTheirTemplatesRefuse) {
  const auto status = [&](const std::string& chat_template,
                          const std::vector<ChatMessage>& messages) {
    return Render(*tokenizer_, chat_template, messages).status();
  };
  const auto in_turn = StatusIs(absl::StatusCode::kInvalidArgument,
                                HasSubstr("messages[1]: found one of the user, wanted the "
                                          "assistant's"));
  for (const std::string& text : {kLlama2, kMistralFirst, kMistralV1, kMistralV3, kMistralTekken,
                                  kGemma2, kGemma3, std::string(kPhi3First)}) {
    EXPECT_THAT(status(text, {{Role::kUser, "a"}, {Role::kUser, "b"}}), in_turn) << text;
    EXPECT_THAT(
        status(text, {{Role::kAssistant, "a"}, {Role::kUser, "b"}}),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("user and assistant in turn")))
        << text;
  }
  for (const std::string& text : {kMistralFirst, kGemma2, std::string(kPhi3First)}) {
    EXPECT_THAT(status(text, {{Role::kSystem, "a"}, {Role::kUser, "b"}}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("takes no system message")))
        << text;
  }
  for (const std::string& text : {kLlama2, kMistralV1, kMistralV3, kMistralTekken, kGemma3}) {
    EXPECT_THAT(
        status(text, {{Role::kUser, "a"}, {Role::kSystem, "b"}, {Role::kUser, "c"}}),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 HasSubstr("messages[1]: the model's " +
                           std::string(ChatFormatName(RecognizeChatFormat(text, *tokenizer_))) +
                           " template takes a system message only as the first")))
        << text;
  }
  // These take any order.
  for (const char* text : {kPhi35, kPhi3Small, kZephyr, kQwen3}) {
    EXPECT_OK(status(text, {{Role::kUser, "a"}, {Role::kUser, "b"}}));
  }
}

TEST_F(ChatFamilies, MessagesCannotForgeSpecialTokens) {
  std::string every;
  for (const std::string& special : kSpecials) every += special;
  for (const std::string& text :
       {kLlama2, kMistralFirst, kMistralV1, kMistralV3, kMistralTekken, std::string(kMistralV7),
        kGemma2, kGemma3, std::string(kPhi35), std::string(kPhi3First), std::string(kPhi3Small),
        std::string(kZephyr), std::string(kQwen3), std::string(kQwq)}) {
    const auto count = [&](const std::string& content) {
      std::vector<ChatMessage> messages = {
          {Role::kUser, content}, {Role::kAssistant, content}, {Role::kUser, content}};
      if (text != kMistralFirst && text != kGemma2 && text != kPhi3First) {
        messages.insert(messages.begin(), {Role::kSystem, content});
      }
      const auto ids = Render(*tokenizer_, text, messages);
      EXPECT_OK(ids) << text;
      if (!ids.ok()) return std::ptrdiff_t{-1};
      return std::count_if(ids->begin(), ids->end(),
                           [&](int32_t id) { return tokenizer_->IsSpecial(id); });
    };
    EXPECT_GT(count("x"), 3) << text;
    EXPECT_EQ(count(every), count("x")) << text;
    // Nor can a text and the marker behind it make another one.
    EXPECT_EQ(count("<"), count("x")) << text;
  }
}

TEST_F(ChatFamilies, NamesAndStopIds) {
  const auto stops = [&](ChatFormat format) {
    std::vector<std::string> tokens;
    for (const int32_t id : ChatStopIds(format, *tokenizer_)) {
      tokens.emplace_back(tokenizer_->TokenBytes(id));
    }
    return absl::StrCat(ChatFormatName(format), ":", testing::PrintToString(tokens));
  };
  EXPECT_EQ(stops(ChatFormat::kLlama2), "llama2:{ \"</s>\" }");
  EXPECT_EQ(stops(ChatFormat::kMistral), "mistral:{ \"</s>\" }");
  EXPECT_EQ(stops(ChatFormat::kGemma), "gemma:{ \"<end_of_turn>\" }");
  EXPECT_EQ(stops(ChatFormat::kPhi3), "phi3:{ \"<|end|>\" }");
  EXPECT_EQ(stops(ChatFormat::kZephyr), "zephyr:{ \"</s>\" }");
}

TEST(CompactTemplate, KeepsTextsAndLosesTheRest) {
  EXPECT_EQ(CompactTemplate("a b{#- x 'y' #}{{- \"p\\n\" +\n 'q ' + message.content | trim -}} c"),
            "a b{{'p\nq '+message['content'].strip()}} c");
  EXPECT_EQ(CompactTemplate("{%- if 'it\\'s' == x %}"), "{%if'it's'==x%}");
  // Ends where no end is written.
  EXPECT_EQ(CompactTemplate("{{ 'a"), "{{'a'");
  EXPECT_EQ(CompactTemplate("{# a"), "");
  EXPECT_EQ(CompactTemplate("{{ 'a\\"), "{{'a\\'");
}

}  // namespace
}  // namespace quern

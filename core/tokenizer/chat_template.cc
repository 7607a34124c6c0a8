#include "core/tokenizer/chat_template.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_replace.h>
#include <absl/strings/strip.h>

#include <algorithm>

namespace quern {
namespace {

using System = ChatStyle::System;
using Thinking = ChatStyle::Thinking;

// What a ChatML system turn begins with where its text is the template's own.
constexpr absl::string_view kChatMlSystem = "<|im_start|>system\n";

// What Llama 3.1 and later put before every system message, and the date they take when the caller
// gives none.
constexpr absl::string_view kLlama31Knowledge = "Cutting Knowledge Date: December 2023";
constexpr absl::string_view kLlama31Date = "26 Jul 2024";

// Signs of templates that use a family's markers in other ways: SmolLM3, Qwen3.5 and Qwen3-Coder,
// Phi-4, Firefunction.
constexpr absl::string_view kOtherWays[] = {"## Metadata", "{%macro", "<|im_sep|>", "functools"};

bool Has(absl::string_view text, absl::string_view part) { return absl::StrContains(text, part); }

template <typename... Parts>
bool HasAll(absl::string_view text, const Parts&... parts) {
  return (Has(text, parts) && ...);
}

void SetTurns(absl::string_view open, absl::string_view behind_role, absl::string_view close,
              ChatStyle* style) {
  style->system_open = absl::StrCat(open, "system", behind_role);
  style->user_open = absl::StrCat(open, "user", behind_role);
  style->assistant_open = absl::StrCat(open, "assistant", behind_role);
  style->system_close = style->user_close = style->assistant_close = std::string(close);
  style->answer_open = style->assistant_open;
}

// SmolLM2, Qwen 1.5 to 3, QwQ, OpenHermes and others.
bool ReadChatMl(absl::string_view text, ChatStyle* style) {
  if (!HasAll(text, "<|im_start|>assistant\n", "<|im_end|>")) return false;
  style->format = ChatFormat::kChatMl;
  style->needed = {"<|im_start|>", "<|im_end|>"};
  style->bos = Has(text, "bos_token");
  SetTurns("<|im_start|>", "\n", "<|im_end|>\n", style);
  // QwQ makes the model think.
  if (Has(text, "'<|im_start|>assistant\n<think>\n'")) style->answer_open += "<think>\n";
  if (Has(text, "split('</think>')")) {
    if (!Has(text, "split('</think>')[-1].lstrip('\n')")) return false;
    style->thinking =
        Has(text, "if'</think>'in") ? Thinking::kDroppedBeforeQuestion : Thinking::kDropped;
  }
  // A whole system turn in one text is for conversations that begin without one.
  for (size_t at = text.find(kChatMlSystem); at != absl::string_view::npos;
       at = text.find(kChatMlSystem, at + 1)) {
    const absl::string_view rest = text.substr(at + kChatMlSystem.size());
    const absl::string_view content = rest.substr(0, rest.find("<|im_end|>"));
    if (content.size() == rest.size() || Has(content, "'")) continue;
    style->default_system = std::string(content);
    break;
  }
  return true;
}

bool ReadLlama3(absl::string_view text, ChatStyle* style) {
  if (!HasAll(text, "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>")) {
    return false;
  }
  const bool dated = HasAll(text, kLlama31Knowledge, kLlama31Date);
  // Another text of the template's own in the system turn.
  if (!dated && Has(text, "<|start_header_id|>system<|end_header_id|>\n\n'}}")) return false;
  style->format = ChatFormat::kLlama3;
  style->needed = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  style->bos = true;
  style->trims = Has(text, ".strip()");
  SetTurns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", style);
  if (dated) {
    style->system_preamble =
        absl::StrCat(kLlama31Knowledge, "\nToday Date: ", kLlama31Date, "\n\n");
  }
  return true;
}

bool ReadLlama2(absl::string_view text, ChatStyle* style) {
  // With "true", a template of the kind adds a default system message, which is not read here.
  if (!HasAll(text, "'[INST] '+content.strip()+' [/INST]'}}",
              "{{' '+content.strip()+' '+eos_token}}",
              "='<<SYS>>\n'+system_message+'\n<</SYS>>\n\n'+message['content']") ||
      Has(text, "eliftrue==true")) {
    return false;
  }
  const bool bos_each_turn = Has(text, "{{bos_token+'[INST] '");
  style->format = ChatFormat::kLlama2;
  style->needed = {"<s>", "</s>"};
  style->bos = !bos_each_turn;
  style->trims = true;
  style->trims_folded_system = true;
  style->system = System::kFirstUser;
  style->fold_open = "<<SYS>>\n";
  style->fold_close = "\n<</SYS>>\n\n";
  style->user_open = bos_each_turn ? "<s>[INST] " : "[INST] ";
  style->user_close = " [/INST]";
  style->assistant_open = " ";
  style->assistant_close = " </s>";
  return true;
}

// Where a Mistral template writes the system message; false when it does so in an unknown way.
bool ReadMistralSystem(absl::string_view text, absl::string_view open, absl::string_view close,
                       ChatStyle* style) {
  const absl::string_view space = absl::EndsWith(open, " ") ? " " : "";
  if (!Has(text, "'system'")) {
    style->system = System::kRefused;
  } else if (Has(text, absl::StrCat("{{'", open, "'+system_message+'\n\n'+message['content']+'",
                                    close, "'}}"))) {
    const bool last = Has(text, "loop.lastandsystem_message") ||
                      Has(text, "(message==user_messages[-1])andsystem_message");
    if (!last && !Has(text, "loop.firstandsystem_message")) return false;
    style->system = last ? System::kLastUser : System::kFirstUser;
    style->fold_close = "\n\n";
  } else if (Has(text, absl::StrCat("{{'[SYSTEM_PROMPT]", space,
                                    "'+message['content']+'[/SYSTEM_PROMPT]'}}"))) {
    style->system_open = absl::StrCat("[SYSTEM_PROMPT]", space);
    style->system_close = "[/SYSTEM_PROMPT]";
  } else {
    return false;
  }
  return true;
}

// The versions differ in spaces: "[INST] x [/INST]" (first), " [INST] x [/INST]" (v1),
// "[INST] x[/INST]" (v3, v7), "[INST]x[/INST]" (v3-tekken), and in those before an answer.
bool ReadMistral(absl::string_view text, ChatStyle* style) {
  for (absl::string_view open : {" [INST] ", "[INST] ", "[INST]"}) {
    for (absl::string_view close : {" [/INST]", "[/INST]"}) {
      if (!Has(text, absl::StrCat("{{'", open, "'+message['content']+'", close, "'}}"))) continue;
      style->user_open = std::string(open);
      style->user_close = std::string(close);
    }
  }
  if (style->user_open.empty() || !Has(text, "{{bos_token}}") ||
      !ReadMistralSystem(text, style->user_open, style->user_close, style)) {
    return false;
  }
  style->trims_assistant = Has(text, "message['content'].strip()+eos_token");
  const absl::string_view answer = style->trims_assistant ? "message['content'].strip()+eos_token"
                                                          : "message['content']+eos_token";
  if (Has(text, absl::StrCat("{{' '+", answer, "}}"))) {
    style->assistant_open = " ";
  } else if (!Has(text, absl::StrCat("{{", answer))) {
    return false;
  }
  style->assistant_close = Has(text, absl::StrCat("{{", answer, "+' '}}")) ? "</s> " : "</s>";
  style->format = ChatFormat::kMistral;
  style->needed = {"<s>", "</s>"};
  style->bos = true;
  return true;
}

bool ReadGemma(absl::string_view text, ChatStyle* style) {
  // Gemma 3 writes the system message before the first of the user, its forerunners refuse it.
  const bool folds = HasAll(text, "'<start_of_turn>'+role+'\n'+(first_user_prefixifloop.first",
                            "first_user_prefix=messages[0]['content']+'\n\n'");
  const bool refuses =
      Has(text, "'<start_of_turn>'+role+'\n'+message['content'].strip()+'<end_of_turn>\n'");
  if (!HasAll(text, "'<start_of_turn>model\n'", "message['content'].strip()", "<end_of_turn>\n'") ||
      folds == refuses) {
    return false;
  }
  style->format = ChatFormat::kGemma;
  style->needed = {"<start_of_turn>", "<end_of_turn>"};
  style->bos = Has(text, "bos_token");
  style->trims = true;
  style->system = folds ? System::kFirstUser : System::kRefused;
  style->fold_close = "\n\n";
  style->user_open = "<start_of_turn>user\n";
  style->assistant_open = style->answer_open = "<start_of_turn>model\n";
  style->user_close = style->assistant_close = "<end_of_turn>\n";
  return true;
}

bool ReadPhi3(absl::string_view text, ChatStyle* style) {
  const bool any_role = Has(text, "'<|'+message['role']+'|>\n'+message['content']+'<|end|>\n'");
  // The first ones open the answer right behind the user's turn, and have no system message.
  const bool first = HasAll(text, "'<|user|>\n'+message['content']+'<|end|>\n<|assistant|>\n'",
                            "{{message['content']+'<|end|>\n'}}");
  const bool each_role = HasAll(text, "'<|user|>\n'+message['content']+'<|end|>\n'}}",
                                "'<|assistant|>\n'+message['content']+'<|end|>\n'}}",
                                "'<|system|>\n'+message['content']+'<|end|>\n'}}");
  if (any_role + first + each_role != 1 || !Has(text, "<|assistant|>\n'")) return false;
  style->format = ChatFormat::kPhi3;
  style->needed = {"<|user|>", "<|assistant|>", "<|end|>"};
  style->bos = Has(text, "bos_token");
  style->alternates = first;
  if (first) style->system = System::kRefused;
  style->skips_empty_system = Has(text, "=='system'andmessage['content']");
  SetTurns("<|", "|>\n", "<|end|>\n", style);
  return true;
}

// Zephyr and TinyLlama; StableLM Zephyr with <|endoftext|>. The roles are plain text there.
bool ReadZephyr(absl::string_view text, const Tokenizer& tokenizer, ChatStyle* style) {
  if (!HasAll(text, "{{'<|user|>\n'+message['content']+eos_token}}\n",
              "{{'<|system|>\n'+message['content']+eos_token}}\n",
              "{{'<|assistant|>\n'+message['content']+eos_token}}\n", "{{'<|assistant|>'}}\n")) {
    return false;
  }
  const absl::string_view eos =
      SpecialId(tokenizer, "</s>") < 0 && SpecialId(tokenizer, "<|endoftext|>") >= 0
          ? "<|endoftext|>"
          : "</s>";
  style->format = ChatFormat::kZephyr;
  style->needed = {std::string(eos)};
  SetTurns("<|", "|>\n", absl::StrCat(eos, "\n"), style);
  return true;
}

// Appends the text that `in` begins with, quotes and all, and takes it away.
void MoveQuoted(absl::string_view* in, std::string* out) {
  const char quote = in->front();
  in->remove_prefix(1);
  // Two texts with a '+' between them are one.
  if (absl::EndsWith(*out, "'+")) {
    out->resize(out->size() - 2);
  } else {
    out->push_back('\'');
  }
  while (!in->empty() && in->front() != quote) {
    char c = in->front();
    in->remove_prefix(1);
    if (c == '\\' && !in->empty()) {
      c = in->front() == 'n' ? '\n' : in->front() == 't' ? '\t' : in->front();
      in->remove_prefix(1);
    }
    out->push_back(c);
  }
  if (!in->empty()) in->remove_prefix(1);
  out->push_back('\'');
}

}  // namespace

int32_t SpecialId(const Tokenizer& tokenizer, absl::string_view token) {
  const int32_t id = tokenizer.TokenToId(token);
  return id >= 0 && tokenizer.IsSpecial(id) ? id : -1;
}

std::string CompactTemplate(absl::string_view chat_template) {
  std::string out;
  out.reserve(chat_template.size());
  bool in_code = false;
  for (absl::string_view rest = chat_template; !rest.empty();) {
    const absl::string_view two = rest.substr(0, 2);
    if (!in_code && two == "{#") {
      const size_t end = rest.find("#}");
      rest.remove_prefix(end == absl::string_view::npos ? rest.size() : end + 2);
    } else if (!in_code && (two == "{{" || two == "{%")) {
      in_code = true;
      absl::StrAppend(&out, two);
      rest.remove_prefix(2);
      absl::ConsumePrefix(&rest, "-");
    } else if (in_code && (absl::ConsumePrefix(&rest, "-}}") || absl::ConsumePrefix(&rest, "}}"))) {
      in_code = false;
      out += "}}";
    } else if (in_code && (absl::ConsumePrefix(&rest, "-%}") || absl::ConsumePrefix(&rest, "%}"))) {
      in_code = false;
      out += "%}";
    } else if (in_code && (rest.front() == '\'' || rest.front() == '"')) {
      MoveQuoted(&rest, &out);
    } else {
      if (!in_code || !absl::ascii_isspace(rest.front())) out.push_back(rest.front());
      rest.remove_prefix(1);
    }
  }
  return absl::StrReplaceAll(
      out, {{".content", "['content']"}, {".role", "['role']"}, {"|trim", ".strip()"}});
}

ChatStyle ReadChatTemplate(absl::string_view chat_template, const Tokenizer& tokenizer) {
  const std::string text = CompactTemplate(chat_template);
  ChatStyle found;
  int num_families = 0;
  const auto take = [&](auto read) {
    ChatStyle style;
    style.alternates = Has(text, "must alternate");
    if (!read(&style)) return;
    ++num_families;
    found = std::move(style);
  };
  take([&](ChatStyle* style) { return ReadChatMl(text, style); });
  take([&](ChatStyle* style) { return ReadLlama3(text, style); });
  take([&](ChatStyle* style) { return ReadLlama2(text, style); });
  take([&](ChatStyle* style) { return ReadMistral(text, style); });
  take([&](ChatStyle* style) { return ReadGemma(text, style); });
  take([&](ChatStyle* style) { return ReadPhi3(text, style); });
  take([&](ChatStyle* style) { return ReadZephyr(text, tokenizer, style); });
  const bool other = std::any_of(std::begin(kOtherWays), std::end(kOtherWays),
                                 [&](absl::string_view way) { return Has(text, way); });
  return num_families == 1 && !other ? found : ChatStyle();
}

}  // namespace quern

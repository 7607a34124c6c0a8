#include "services/cli/chat_session.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <utility>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "services/cli/format.h"
#include "services/cli/line_editor.h"

namespace quern::cli {
namespace {

namespace inference_pb = inference::v1;
using PbMessage = inference_pb::Chat::Message;

constexpr char kHelp[] =
    "  /help             this list\n"
    "  /clear            begin anew; the system message stays\n"
    "  /system TEXT      set the system message and begin anew; without TEXT: show it\n"
    "  /params           show how answers are sampled\n"
    "  /params NAME N    set temperature, top-k, top-p, min-p, seed or max-tokens\n"
    "  /save FILE        write the conversation as JSON\n"
    "  /exit             leave, as Ctrl-D does\n"
    "Ctrl-C stops an answer. A line that ends with \\ or Alt-Enter goes on in the next.\n"
    "A message that begins with / is written with a space before it.\n";

// Of a template, around one message: its role and its marks.
constexpr int kMessageOverheadTokens = 8;
// To leave for an answer when the context is short of room: this many, or an eighth of it.
constexpr int kAnswerTokens = 256;

const char* RoleName(PbMessage::Role role) {
  switch (role) {
    case PbMessage::SYSTEM:
      return "system";
    case PbMessage::ASSISTANT:
      return "assistant";
    default:
      return "user";
  }
}

template <typename Number, typename Parse>
bool SetNumber(absl::string_view text, Parse parse, Number* out) {
  Number number{};
  if (!parse(text, &number)) return false;
  *out = number;
  return true;
}

}  // namespace

std::string WithoutControls(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // C1, U+0080 to U+009F: some terminals take them for escape sequences.
    const bool c1 =
        byte == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (c1) ++i;
    if (c1 || byte == 0x7f || (byte < 0x20 && byte != '\n' && byte != '\t')) {
      out += "\xef\xbf\xbd";  // U+FFFD
    } else {
      out += text[i];
    }
  }
  return out;
}

ChatSession::ChatSession(std::shared_ptr<grpc::Channel> channel, const GenerateOptions& options,
                         int context_tokens, bool colors, Interrupt& interrupt)
    : channel_(std::move(channel)),
      context_tokens_(context_tokens),
      colors_(colors),
      interrupt_(interrupt),
      options_(options),
      system_(options.system) {}

bool ChatSession::Handle(const std::string& text) {
  if (absl::StripAsciiWhitespace(text).empty()) return true;
  if (text[0] == '/') return Command(absl::StripAsciiWhitespace(text));
  Ask(std::string(absl::StripAsciiWhitespace(text)));
  return true;
}

bool ChatSession::Command(absl::string_view text) {
  const size_t space = std::min(text.find(' '), text.size());
  const absl::string_view name = text.substr(0, space);
  const absl::string_view rest = absl::StripLeadingAsciiWhitespace(text.substr(space));
  if (name == "/exit" || name == "/quit") return false;
  if (name == "/help") {
    std::cout << kHelp << std::flush;
  } else if (name == "/clear") {
    messages_.clear();
    used_tokens_ = 0;
    Say("the conversation begins anew");
  } else if (name == "/system") {
    SetSystem(rest);
  } else if (name == "/save") {
    Save(rest);
  } else if (name == "/params") {
    rest.empty() ? ShowParameters() : SetParameter(rest);
  } else {
    Say(absl::StrCat(name, " is no command; /help lists them"));
  }
  return true;
}

void ChatSession::SetSystem(absl::string_view text) {
  if (text.empty()) {
    return Say(system_.empty() ? "no system message" : absl::StrCat("system message: ", system_));
  }
  system_ = std::string(text);
  messages_.clear();
  used_tokens_ = 0;
  Say("the conversation begins anew with this system message");
}

void ChatSession::Save(absl::string_view path) const {
  if (path.empty()) return Say("/save wants the name of a file");
  if (access(std::string(path).c_str(), F_OK) == 0) {
    return Say(absl::StrCat(path, " is there already; name another file"));
  }
  // A line as `quern bench serve --prompts` reads it.
  Json messages = Json::array();
  if (!system_.empty()) messages.push_back({{"role", "system"}, {"content", system_}});
  for (const Message& message : messages_) {
    messages.push_back({{"role", RoleName(message.role)}, {"content", message.content}});
  }
  const absl::Status status =
      WriteFileDurably(path, absl::StrCat(Json{{"messages", std::move(messages)}}.dump(), "\n"));
  if (!status.ok()) return Complain(status);
  Say(absl::StrCat(messages_.size(), " messages written to ", path));
}

void ChatSession::ShowParameters() const {
  Say(absl::StrFormat("temperature %g  top-k %d  top-p %g  min-p %g  seed %s  max-tokens %d",
                      options_.temperature, options_.top_k, options_.top_p, options_.min_p,
                      options_.seed ? absl::StrCat(*options_.seed) : "chosen by the server",
                      options_.max_tokens));
}

void ChatSession::SetParameter(absl::string_view text) {
  const size_t space = std::min(text.find(' '), text.size());
  const absl::string_view name = text.substr(0, space);
  const absl::string_view value = absl::StripAsciiWhitespace(text.substr(space));
  const auto to_float = [](absl::string_view t, float* n) { return absl::SimpleAtof(t, n); };
  const auto to_int = [](absl::string_view t, auto* n) { return absl::SimpleAtoi(t, n); };
  bool set = false;
  if (name == "temperature") {
    set = SetNumber(value, to_float, &options_.temperature);
  } else if (name == "top-k") {
    set = SetNumber(value, to_int, &options_.top_k);
  } else if (name == "top-p") {
    set = SetNumber(value, to_float, &options_.top_p);
  } else if (name == "min-p") {
    set = SetNumber(value, to_float, &options_.min_p);
  } else if (name == "seed") {
    int64_t seed = 0;
    set = SetNumber(value, to_int, &seed);
    if (set) options_.seed = seed;
  } else if (name == "max-tokens") {
    set = SetNumber(value, to_int, &options_.max_tokens);
  } else {
    return Say(absl::StrCat("there is no \"", name,
                            "\"; wanted temperature, top-k, top-p, min-p, seed or max-tokens"));
  }
  // The server checks ranges, with the next message.
  if (!set) return Say(absl::StrCat(name, ": found \"", value, "\", wanted a number"));
  ShowParameters();
}

absl::StatusOr<int> ChatSession::CountTokens(const std::string& text) {
  inference_pb::CountTokensRequest request;
  request.set_model(ResourceName("models", options_.model));
  request.set_text(text);
  grpc::ClientContext call;
  inference_pb::CountTokensResponse response;
  RETURN_IF_ERROR(CallStatus(
      inference_pb::InferenceService::NewStub(channel_)->CountTokens(&call, request, &response)));
  return response.token_count() + kMessageOverheadTokens;
}

absl::Status ChatSession::MakeRoom(const std::string& text) {
  if (messages_.empty() || context_tokens_ <= 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int wanted, CountTokens(text));
  const int answer = std::min(options_.max_tokens > 0 ? options_.max_tokens : kAnswerTokens,
                              std::min(kAnswerTokens, context_tokens_ / 8));
  size_t num_forgotten = 0;
  while (num_forgotten < messages_.size() && used_tokens_ + wanted + answer > context_tokens_) {
    // A question goes with its answer.
    do {
      ASSIGN_OR_RETURN(const int freed, CountTokens(messages_[num_forgotten].content));
      used_tokens_ = std::max(0, used_tokens_ - freed);
      ++num_forgotten;
    } while (num_forgotten < messages_.size() && messages_[num_forgotten].role != PbMessage::USER);
  }
  if (num_forgotten == 0) return absl::OkStatus();
  messages_.erase(messages_.begin(), messages_.begin() + static_cast<ptrdiff_t>(num_forgotten));
  Say(absl::StrCat("the context of ", FormatCount(context_tokens_), " tokens is full: the oldest ",
                   num_forgotten, " messages are forgotten; /clear begins anew"));
  return absl::OkStatus();
}

void ChatSession::Ask(const std::string& text) {
  if (const absl::Status status = MakeRoom(text); !status.ok()) return Complain(status);
  absl::StatusOr<inference_pb::GenerateTextRequest> made = MakeGenerateRequest(options_);
  if (!made.ok()) return Complain(made.status());
  inference_pb::GenerateTextRequest& request = *made;
  const auto add = [&](PbMessage::Role role, const std::string& content) {
    PbMessage& message = *request.mutable_chat()->add_messages();
    message.set_role(role);
    message.set_content(content);
  };
  if (!system_.empty()) add(PbMessage::SYSTEM, system_);
  for (const Message& message : messages_) add(message.role, message.content);
  add(PbMessage::USER, text);

  Generation generation;
  {
    const EchoOff quiet;
    const auto print = [](absl::string_view piece) {
      std::cout << WithoutControls(piece) << std::flush;
    };
    generation = Generate(channel_, request, print, interrupt_);
  }
  if (!generation.text.empty() && !absl::EndsWith(generation.text, "\n")) std::cout << "\n";
  const bool stopped = absl::IsCancelled(generation.status);
  // The conversation goes on from what was said; without an answer the question was not asked.
  if (generation.status.ok() || (stopped && !generation.text.empty())) {
    messages_.push_back({PbMessage::USER, text});
    messages_.push_back({PbMessage::ASSISTANT, generation.text});
  }
  if (stopped) {
    // How many tokens that were the server has not said.
    used_tokens_ = std::min(context_tokens_, used_tokens_ + kMessageOverheadTokens +
                                                 generation.last.token_ids_size() +
                                                 static_cast<int>(text.size() / 3));
    Say(generation.text.empty() ? "stopped; not asked" : "stopped");
  } else if (generation.status.ok()) {
    DescribeAnswer(generation);
  } else {
    Complain(generation.status);
  }
}

void ChatSession::DescribeAnswer(const Generation& generation) {
  const inference_pb::Usage& usage = generation.last.usage();
  used_tokens_ = usage.prompt_tokens() + usage.output_tokens();
  std::string line = absl::StrCat(FormatCount(usage.output_tokens()), " tokens");
  if (const double rate = DecodeRate(usage); rate > 0) {
    absl::StrAppendFormat(&line, ", %.1f tokens/s", rate);
  }
  absl::StrAppend(&line, ", context ", FormatCount(used_tokens_));
  if (context_tokens_ > 0) absl::StrAppend(&line, " of ", FormatCount(context_tokens_));
  switch (generation.last.finish_reason()) {
    case inference_pb::GenerateTextResponse::CONTEXT_FULL:
      absl::StrAppend(&line, "; cut off, the context is full: /clear begins anew");
      break;
    case inference_pb::GenerateTextResponse::MAX_OUTPUT_TOKENS:
      absl::StrAppend(&line, "; cut off by max-tokens");
      break;
    case inference_pb::GenerateTextResponse::TIME_LIMIT:
      absl::StrAppend(&line, "; cut off by the time limit");
      break;
    default:
      break;
  }
  Say(line);
}

void ChatSession::Say(absl::string_view text) const {
  const std::string shown = WithoutControls(text);
  std::cout << (colors_ ? absl::StrCat("\x1b[2m", shown, "\x1b[0m") : shown) << std::endl;
}

void ChatSession::Complain(const absl::Status& status) const {
  std::cout << std::flush;
  std::cerr << "quern: " << absl::StatusCodeToString(status.code()) << ": "
            << WithoutControls(std::string(status.message())) << std::endl;
  if (absl::IsUnavailable(status)) {
    Say("the conversation is kept; the up arrow brings the message back to be sent again");
  }
}

}  // namespace quern::cli

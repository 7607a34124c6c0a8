// `quern complete` and `quern chat`.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "services/cli/commands.h"

namespace quern::cli {
namespace {

namespace inference_pb = inference::v1;

struct GenerateOptions {
  std::string model;
  std::string text;
  std::string system;
  float temperature = 0;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  std::optional<int64_t> seed;
  int max_tokens = 0;
  std::vector<std::string> stop;
  bool stats = false;
};

inference_pb::GenerateTextRequest MakeGenerateRequest(const GenerateOptions& options) {
  inference_pb::GenerateTextRequest request;
  request.set_model(ResourceName("models", options.model));
  request.set_max_output_tokens(options.max_tokens);
  for (const std::string& stop : options.stop) request.add_stop_sequences(stop);
  inference_pb::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(options.temperature);
  sampling.set_top_k(options.top_k);
  sampling.set_top_p(options.top_p);
  sampling.set_min_p(options.min_p);
  if (options.seed) sampling.set_seed(*options.seed);
  return request;
}

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

// "24 tokens, 91.4 tokens/s, first after 0.041 s, END_OF_TEXT, seed 7".
std::string DescribeEnd(const inference_pb::GenerateTextResponse& last) {
  const auto& usage = last.usage();
  const double first = Seconds(usage.time_to_first_token());
  const double decode = Seconds(usage.total_duration()) - first;
  std::string text = absl::StrFormat("%d tokens", usage.output_tokens());
  if (usage.output_tokens() > 1 && decode > 0) {
    absl::StrAppend(&text,
                    absl::StrFormat(", %.1f tokens/s", (usage.output_tokens() - 1) / decode));
  }
  absl::StrAppend(
      &text, absl::StrFormat(
                 ", prompt of %d, first token after %.3f s, %s, seed %d, %s", usage.prompt_tokens(),
                 first, inference_pb::GenerateTextResponse::FinishReason_Name(last.finish_reason()),
                 last.seed(), last.system_fingerprint()));
  return text;
}

// Prints the text as it comes (with --json one object at the end); returns all of it.
absl::StatusOr<std::string> Stream(const inference_pb::GenerateTextRequest& request,
                                   const GenerateOptions& options, Context& context,
                                   Interrupt& interrupt) {
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  auto stub = inference_pb::InferenceService::NewStub(channel);
  grpc::ClientContext call;
  interrupt.Attach(&call);
  auto stream = stub->StreamGenerateText(&call, request);
  inference_pb::GenerateTextResponse response;
  inference_pb::GenerateTextResponse last;
  std::string text;
  google::protobuf::RepeatedField<int32_t> token_ids;
  while (stream->Read(&response)) {
    text += response.text();
    token_ids.MergeFrom(response.token_ids());
    if (!context.json()) std::cout << response.text() << std::flush;
    last = response;
  }
  const absl::Status status = CallStatus(stream->Finish());
  interrupt.Release();
  if (!context.json()) std::cout << std::endl;
  RETURN_IF_ERROR(status);
  if (context.json()) {
    last.set_text(text);
    last.mutable_token_ids()->Swap(&token_ids);
    RETURN_IF_ERROR(PrintJson(last));
  }
  if (options.stats && !context.json()) std::cerr << "[" << DescribeEnd(last) << "]" << std::endl;
  return text;
}

absl::Status Complete(const GenerateOptions& options, Context& context, Interrupt& interrupt) {
  inference_pb::GenerateTextRequest request = MakeGenerateRequest(options);
  request.set_prompt(options.text);
  // A person reads on where the prompt ends; a pipe wants what was generated.
  if (context.terminal() && !context.json()) std::cout << options.text << std::flush;
  return Stream(request, options, context, interrupt).status();
}

// Says so when chats with the model are plain text.
absl::Status NoteChatFormat(const GenerateOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  inference_pb::GetModelRequest request;
  request.set_name(ResourceName("models", options.model));
  grpc::ClientContext call;
  inference_pb::Model model;
  RETURN_IF_ERROR(
      CallStatus(inference_pb::ModelService::NewStub(channel)->GetModel(&call, request, &model)));
  if (model.chat_format() == "none") {
    std::cerr << "note: " << model.name()
              << " names no chat format that quern knows; messages go to it as plain text"
              << std::endl;
  }
  return absl::OkStatus();
}

absl::Status Chat(const GenerateOptions& options, Context& context, Interrupt& interrupt) {
  inference_pb::GenerateTextRequest request = MakeGenerateRequest(options);
  const auto add = [&](inference_pb::Chat::Message::Role role, const std::string& content) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
  };
  RETURN_IF_ERROR(NoteChatFormat(options, context));
  if (!options.system.empty()) add(inference_pb::Chat::Message::SYSTEM, options.system);
  if (!options.text.empty()) {
    add(inference_pb::Chat::Message::USER, options.text);
    return Stream(request, options, context, interrupt).status();
  }
  const bool prompt = isatty(STDIN_FILENO) == 1 && context.terminal();
  if (prompt) std::cout << "chat with " << options.model << "; Ctrl-D ends it\n";
  std::string line;
  while ((!prompt || std::cout << "> " << std::flush) && std::getline(std::cin, line)) {
    if (line.empty()) continue;
    add(inference_pb::Chat::Message::USER, line);
    ASSIGN_OR_RETURN(const std::string answer, Stream(request, options, context, interrupt));
    add(inference_pb::Chat::Message::ASSISTANT, answer);
  }
  if (prompt) std::cout << std::endl;
  return absl::OkStatus();
}

void AddCommon(CLI::App* sub, GenerateOptions& options) {
  sub->add_option("model", options.model, "a loaded model")->required();
  sub->add_option("--temperature", options.temperature,
                  "higher is more varied; 0: always the likeliest token")
      ->capture_default_str();
  sub->add_option("--top-k", options.top_k, "only this many likeliest tokens; 0: all")
      ->capture_default_str();
  sub->add_option("--top-p", options.top_p, "only the likeliest tokens of this share; 1: all")
      ->capture_default_str();
  sub->add_option("--min-p", options.min_p,
                  "only tokens of at least this share of the likeliest one's; 0: all")
      ->capture_default_str();
  sub->add_option("--seed", options.seed, "unset: chosen by the server");
  sub->add_option("--max-tokens", options.max_tokens, "0: up to the model's context")
      ->capture_default_str();
  sub->add_option("--stop", options.stop, "end before this text; may be given 4 times");
  sub->add_flag("--stats", options.stats, "tokens/s and more on standard error");
}

}  // namespace

void AddGenerate(CLI::App& app, Command& command) {
  auto complete_options = std::make_shared<GenerateOptions>();
  CLI::App* complete = app.add_subcommand("complete", "Continue a text");
  AddCommon(complete, *complete_options);
  complete->add_option("prompt", complete_options->text, "the text to continue")->required();
  complete->callback([complete_options, &command] {
    command = [complete_options](Context& context, Interrupt& interrupt) {
      interrupt.Watch();
      return Complete(*complete_options, context, interrupt);
    };
  });

  auto chat_options = std::make_shared<GenerateOptions>();
  CLI::App* chat = app.add_subcommand("chat", "Talk to a model in its own chat format");
  AddCommon(chat, *chat_options);
  chat->add_option("message", chat_options->text, "one message; unset: talk line by line");
  chat->add_option("--system", chat_options->system, "system message");
  chat->callback([chat_options, &command] {
    command = [chat_options](Context& context, Interrupt& interrupt) {
      interrupt.WatchCallsOnly();
      return Chat(*chat_options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

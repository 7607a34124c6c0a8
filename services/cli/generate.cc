// `quern complete`, and what `quern chat` shares with it.

#include "services/cli/generate.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <iostream>
#include <utility>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/constraint/constraint.h"
#include "services/cli/commands.h"

namespace quern::cli {
namespace {

namespace inference_pb = inference::v1;

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

absl::Status Complete(const GenerateOptions& options, Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(inference_pb::GenerateTextRequest request, MakeGenerateRequest(options));
  request.set_prompt(options.text);
  // A person reads on where the prompt ends; a pipe wants what was generated.
  if (context.terminal() && !context.json()) std::cout << options.text << std::flush;
  std::string text;
  return PrintGeneration(request, options, context, interrupt, &text);
}

}  // namespace

absl::StatusOr<inference_pb::GenerateTextRequest> MakeGenerateRequest(
    const GenerateOptions& options) {
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
  const int num_constraints = (options.json_schema.empty() ? 0 : 1) +
                              (options.regex.empty() ? 0 : 1) + (options.choices.empty() ? 0 : 1);
  if (num_constraints > 1) {
    return absl::InvalidArgumentError("--json-schema, --regex and --choice exclude each other");
  }
  if (!options.json_schema.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_json_schema(),
                     ReadFile(options.json_schema, kMaxConstraintBytes));
  } else if (!options.regex.empty()) {
    request.set_regex(options.regex);
  }
  for (const std::string& choice : options.choices) request.mutable_choice()->add_texts(choice);
  return request;
}

double DecodeRate(const inference_pb::Usage& usage) {
  const double decode = Seconds(usage.total_duration()) - Seconds(usage.time_to_first_token());
  return usage.output_tokens() > 1 && decode > 0 ? (usage.output_tokens() - 1) / decode : 0;
}

std::string DescribeGeneration(const inference_pb::GenerateTextResponse& last) {
  const auto& usage = last.usage();
  std::string text = absl::StrFormat("%d tokens", usage.output_tokens());
  if (const double rate = DecodeRate(usage); rate > 0) {
    absl::StrAppendFormat(&text, ", %.1f tokens/s", rate);
  }
  absl::StrAppendFormat(&text, ", prompt of %d, first token after %.3f s, %s, seed %d, %s",
                        usage.prompt_tokens(), Seconds(usage.time_to_first_token()),
                        inference_pb::GenerateTextResponse::FinishReason_Name(last.finish_reason()),
                        last.seed(), last.system_fingerprint());
  return text;
}

Generation Generate(const std::shared_ptr<grpc::Channel>& channel,
                    const inference_pb::GenerateTextRequest& request,
                    const std::function<void(absl::string_view)>& on_text, Interrupt& interrupt) {
  const auto stub = inference_pb::InferenceService::NewStub(channel);
  grpc::ClientContext call;
  interrupt.Attach(&call);
  const auto stream = stub->StreamGenerateText(&call, request);
  Generation generation;
  inference_pb::GenerateTextResponse response;
  google::protobuf::RepeatedField<int32_t> token_ids;
  while (stream->Read(&response)) {
    generation.text += response.text();
    token_ids.MergeFrom(response.token_ids());
    if (!response.text().empty()) on_text(response.text());
    generation.last = response;
  }
  generation.status = CallStatus(stream->Finish());
  interrupt.Release();
  generation.last.set_text(generation.text);
  generation.last.mutable_token_ids()->Swap(&token_ids);
  return generation;
}

absl::Status PrintGeneration(const inference_pb::GenerateTextRequest& request,
                             const GenerateOptions& options, Context& context, Interrupt& interrupt,
                             std::string* text) {
  ASSIGN_OR_RETURN(const auto channel, context.Inference());
  const auto print = [&](absl::string_view piece) {
    if (!context.json()) std::cout << std::string(piece) << std::flush;
  };
  Generation generation = Generate(channel, request, print, interrupt);
  if (!context.json()) std::cout << std::endl;
  RETURN_IF_ERROR(generation.status);
  if (context.json()) {
    RETURN_IF_ERROR(PrintJson(generation.last));
  } else if (options.stats) {
    std::cerr << "[" << DescribeGeneration(generation.last) << "]" << std::endl;
  }
  *text = std::move(generation.text);
  return absl::OkStatus();
}

void AddGenerateOptions(CLI::App* sub, GenerateOptions& options) {
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
  sub->add_option("--json-schema", options.json_schema,
                  "a file: the answer is JSON that is valid under this JSON Schema");
  sub->add_option("--regex", options.regex, "the answer as a whole matches this");
  sub->add_option("--choice", options.choices, "the answer is one of these; given once for each")
      ->allow_extra_args(false);
  sub->add_flag("--stats", options.stats, "tokens/s and more on standard error");
}

void AddComplete(CLI::App& app, Command& command) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* complete = app.add_subcommand("complete", "Continue a text");
  AddGenerateOptions(complete, *options);
  complete->add_option("prompt", options->text, "the text to continue")->required();
  complete->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      interrupt.Watch();
      return Complete(*options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

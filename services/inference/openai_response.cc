#include "services/inference/openai_response.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <nlohmann/json.hpp>
#include <random>

#include "core/base/retry_delay.h"
#include "services/inference/openai_request.h"

namespace quern {
namespace {

using OrderedJson = nlohmann::ordered_json;
using inference::v1::GenerateTextResponse;
using inference::v1::TokenLogprobs;

std::string Dump(const OrderedJson& json) {
  return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}
std::string Event(const OrderedJson& json) { return absl::StrCat("data: ", Dump(json), "\n\n"); }

OrderedJson FinishReason(const GenerateTextResponse& response) {
  switch (response.finish_reason()) {
    case GenerateTextResponse::FINISH_REASON_UNSPECIFIED:
      return nullptr;
    case GenerateTextResponse::END_OF_TEXT:
    case GenerateTextResponse::STOP_SEQUENCE:
      return "stop";
    default:
      return "length";
  }
}

OrderedJson Head(const OpenAiAnswer& answer, absl::string_view object) {
  return {{"id", answer.id},
          {"object", object},
          {"created", answer.created},
          {"model", answer.model},
          {"system_fingerprint", answer.system_fingerprint}};
}

OrderedJson UsageOf(const OpenAiUsage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

OrderedJson ChatLogprob(const TokenLogprobs::Candidate& candidate, const Tokenizer* tokenizer) {
  OrderedJson bytes;
  if (tokenizer != nullptr) {
    bytes = OrderedJson::array();
    for (const char c : tokenizer->TokenBytes(candidate.token_id())) {
      bytes.push_back(static_cast<uint8_t>(c));
    }
  }
  return {{"token", candidate.text()}, {"logprob", candidate.logprob()}, {"bytes", bytes}};
}

OrderedJson ChatLogprobs(const GenerateTextResponse& response, const Tokenizer* tokenizer) {
  if (response.logprobs().empty()) return nullptr;
  OrderedJson content = OrderedJson::array();
  for (const TokenLogprobs& token : response.logprobs()) {
    OrderedJson entry = ChatLogprob(token.token(), tokenizer);
    entry["top_logprobs"] = OrderedJson::array();
    for (const auto& candidate : token.most_probable()) {
      entry["top_logprobs"].push_back(ChatLogprob(candidate, tokenizer));
    }
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

OrderedJson CompletionLogprobs(const OpenAiChoice& choice) {
  const GenerateTextResponse& response = choice.response;
  OrderedJson tokens = OrderedJson::array(), logprobs = OrderedJson::array(),
              top = OrderedJson::array();
  const auto add = [&](const TokenLogprobs& token, bool known) {
    tokens.push_back(token.token().text());
    logprobs.push_back(known ? OrderedJson(token.token().logprob()) : OrderedJson());
    OrderedJson candidates = known ? OrderedJson::object() : OrderedJson();
    // Of tokens that look the same, the most probable one.
    for (const auto& candidate : token.most_probable()) {
      if (!candidates.contains(candidate.text())) {
        candidates[candidate.text()] = candidate.logprob();
      }
    }
    top.push_back(std::move(candidates));
  };
  if (choice.echo_logprobs) {
    for (int i = 0; i < response.prompt_logprobs_size(); ++i) {
      add(response.prompt_logprobs(i), /*known=*/i > 0);
    }
  }
  for (const TokenLogprobs& token : response.logprobs()) add(token, /*known=*/true);
  if (tokens.empty()) return nullptr;
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(top)}};
}

// vLLM's form: for each token null (the first) or an object by token id, of the most probable
// tokens and the prompt's own.
OrderedJson PromptLogprobs(const GenerateTextResponse& response) {
  OrderedJson all = OrderedJson::array();
  for (int i = 0; i < response.prompt_logprobs_size(); ++i) {
    const TokenLogprobs& token = response.prompt_logprobs(i);
    OrderedJson entry = i > 0 ? OrderedJson::object() : OrderedJson();
    const auto add = [&](const TokenLogprobs::Candidate& candidate, const OrderedJson& rank) {
      const std::string id = absl::StrCat(candidate.token_id());
      if (entry.contains(id)) return;
      entry[id] = {
          {"logprob", candidate.logprob()}, {"rank", rank}, {"decoded_token", candidate.text()}};
    };
    for (int rank = 0; rank < token.most_probable_size(); ++rank) {
      add(token.most_probable(rank), rank + 1);
    }
    if (i > 0) add(token.token(), nullptr);
    all.push_back(std::move(entry));
  }
  return all;
}

void AddPromptLogprobs(const OpenAiChoice& choice, OrderedJson& out) {
  if (choice.prompt_logprobs && choice.response.prompt_logprobs_size() > 0) {
    out["prompt_logprobs"] = PromptLogprobs(choice.response);
  }
}

// "message" of a whole answer, "delta" of a piece.
OrderedJson ChatChoice(const OpenAiChoice& choice, const char* name, const Tokenizer* tokenizer) {
  OrderedJson message = OrderedJson::object();
  const bool whole = absl::string_view(name) == "message";
  if (whole || choice.is_first_piece) message["role"] = "assistant";
  if (whole || choice.is_first_piece || !choice.text.empty()) message["content"] = choice.text;
  if (whole) message["refusal"] = nullptr;
  OrderedJson out = {{"index", choice.index},
                     {name, std::move(message)},
                     {"logprobs", ChatLogprobs(choice.response, tokenizer)},
                     {"finish_reason", FinishReason(choice.response)}};
  AddPromptLogprobs(choice, out);
  return out;
}

OrderedJson CompletionChoice(const OpenAiChoice& choice) {
  OrderedJson out = {{"text", choice.text},
                     {"index", choice.index},
                     {"logprobs", CompletionLogprobs(choice)},
                     {"finish_reason", FinishReason(choice.response)}};
  AddPromptLogprobs(choice, out);
  return out;
}

int HttpStatusOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kCancelled:
      return 499;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

std::string CodeOf(int http_status) {
  switch (http_status) {
    case 404:
      return "model_not_found";
    case 429:
      return "rate_limit_exceeded";
    default:
      return "";
  }
}

OrderedJson ErrorJson(int http_status, absl::string_view message, absl::string_view param,
                      absl::string_view code) {
  const absl::string_view type = http_status == 429   ? "rate_limit_error"
                                 : http_status >= 500 ? "server_error"
                                                      : "invalid_request_error";
  const auto or_null = [](absl::string_view text) {
    return text.empty() ? OrderedJson(nullptr) : OrderedJson(text);
  };
  return {
      {"error",
       {{"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
}

}  // namespace

std::string NewOpenAiId(bool chat) {
  std::random_device random;
  return absl::StrFormat("%s-%08x%08x%08x%08x", chat ? "chatcmpl" : "cmpl", random(), random(),
                         random(), random());
}

std::string WholeBody(const OpenAiAnswer& answer, const std::vector<OpenAiChoice>& choices,
                      const OpenAiUsage& usage) {
  OrderedJson body = Head(answer, answer.chat ? "chat.completion" : "text_completion");
  body["choices"] = OrderedJson::array();
  for (const OpenAiChoice& choice : choices) {
    body["choices"].push_back(answer.chat ? ChatChoice(choice, "message", answer.tokenizer.get())
                                          : CompletionChoice(choice));
  }
  body["usage"] = UsageOf(usage);
  return Dump(body);
}

std::string PieceEvent(const OpenAiAnswer& answer, const OpenAiChoice& choice) {
  OrderedJson body = Head(answer, answer.chat ? "chat.completion.chunk" : "text_completion");
  body["choices"] = {answer.chat ? ChatChoice(choice, "delta", answer.tokenizer.get())
                                 : CompletionChoice(choice)};
  return Event(body);
}

std::string UsageEvent(const OpenAiAnswer& answer, const OpenAiUsage& usage) {
  OrderedJson body = Head(answer, answer.chat ? "chat.completion.chunk" : "text_completion");
  body["choices"] = OrderedJson::array();
  body["usage"] = UsageOf(usage);
  return Event(body);
}

std::string ErrorBody(int http_status, absl::string_view message, absl::string_view param,
                      absl::string_view code) {
  return Dump(ErrorJson(http_status, message, param, code));
}

HttpResponse ErrorResponse(const absl::Status& status) {
  const int http_status = HttpStatusOf(status);
  HttpResponse response{
      .status = http_status,
      .content_type = "application/json",
      .body = ErrorBody(http_status, status.message(), ParamOf(status), CodeOf(http_status))};
  // The official clients wait so long before they try again.
  if (http_status == 429 || http_status == 503) {
    const absl::Duration delay = RetryDelayOf(status).value_or(absl::Seconds(1));
    response.headers = {
        {"Retry-After", absl::StrCat(absl::ToInt64Seconds(absl::Ceil(delay, absl::Seconds(1))))}};
  }
  return response;
}

std::string ErrorEvent(const absl::Status& status) {
  const int http_status = HttpStatusOf(status);
  return Event(ErrorJson(http_status, status.message(), ParamOf(status), CodeOf(http_status)));
}

}  // namespace quern

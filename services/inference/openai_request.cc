#include "services/inference/openai_request.h"

#include <absl/strings/cord.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/constraint/constraint.h"

namespace quern {
namespace {

using inference::v1::Chat;
using inference::v1::GenerateTextRequest;

constexpr char kParamPayload[] = "quern/param";
// OpenAI's.
constexpr int kDefaultCompletionTokens = 16;

absl::Status Invalid(absl::string_view param, absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(absl::StrCat(param, ": ", message));
  status.SetPayload(kParamPayload, absl::Cord(param));
  return status;
}

std::string Found(const Json& value) {
  constexpr size_t kMaxShown = 80;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = absl::StrCat(text.substr(0, kMaxShown), "...");
  return text;
}

// The fields of one object. Each is taken once; the first fault is kept, and whatever was not taken
// is one.
class Fields {
 public:
  explicit Fields(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // Null when the field is not there or null.
  const Json* Take(const std::string& name) {
    taken_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  void Fail(absl::string_view name, absl::string_view message) {
    if (status_.ok()) status_ = Invalid(absl::StrCat(prefix_, name), message);
  }
  // The fault of a part.
  void Absorb(const absl::Status& status) { status_.Update(status); }
  void FailType(const std::string& name, absl::string_view wanted, const Json& found) {
    Fail(name, absl::StrCat("wanted ", wanted, ", got ", Found(found)));
  }

  std::optional<bool> Bool(const std::string& name) {
    const Json* value = Take(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) {
      FailType(name, "true or false", *value);
      return std::nullopt;
    }
    return value->get<bool>();
  }
  std::optional<int64_t> Int(const std::string& name,
                             int64_t least = std::numeric_limits<int32_t>::min(),
                             int64_t most = std::numeric_limits<int32_t>::max()) {
    const Json* value = Take(name);
    if (value == nullptr) return std::nullopt;
    return AsInt(name, *value, least, most);
  }
  std::optional<int64_t> AsInt(const std::string& name, const Json& value, int64_t least,
                               int64_t most) {
    const bool fits = value.is_number_unsigned()
                          ? value.get<uint64_t>() <= static_cast<uint64_t>(most) &&
                                static_cast<int64_t>(value.get<uint64_t>()) >= least
                          : value.is_number_integer() && value.get<int64_t>() >= least &&
                                value.get<int64_t>() <= most;
    if (!fits) {
      FailType(name, absl::StrCat("a whole number from ", least, " to ", most), value);
      return std::nullopt;
    }
    return value.get<int64_t>();
  }
  std::optional<float> Float(const std::string& name) {
    const Json* value = Take(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number()) {
      FailType(name, "a number", *value);
      return std::nullopt;
    }
    return value->get<float>();
  }
  std::optional<std::string> String(const std::string& name) {
    const Json* value = Take(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_string()) {
      FailType(name, "a text", *value);
      return std::nullopt;
    }
    return value->get<std::string>();
  }
  // Known to OpenAI's API, not to this server: only `harmless` passes, what it means without it.
  void Refuse(const std::string& name, const Json& harmless = nullptr) {
    const Json* value = Take(name);
    if (value != nullptr && *value != harmless) {
      Fail(name,
           absl::StrCat("this server does not support it; leave it out (got ", Found(*value), ")"));
    }
  }
  void Ignore(const std::string& name) { taken_.insert(name); }

  absl::Status Finish() {
    for (auto it = object_.begin(); status_.ok() && it != object_.end(); ++it) {
      if (!taken_.contains(it.key())) Fail(it.key(), "unknown field");
    }
    return status_;
  }

 private:
  const Json& object_;
  const std::string prefix_;
  std::set<std::string> taken_;
  absl::Status status_;
};

absl::StatusOr<Json> ParseObject(absl::string_view body) {
  ASSIGN_OR_RETURN(Json document, ParseJson(body, "the body"));
  if (!document.is_object()) {
    return absl::InvalidArgumentError("the body must be a JSON object");
  }
  return document;
}

void ReadStop(Fields& fields, GenerateTextRequest& request) {
  const Json* stop = fields.Take("stop");
  if (stop == nullptr) return;
  if (stop->is_string()) {
    request.add_stop_sequences(stop->get<std::string>());
    return;
  }
  if (!stop->is_array()) return fields.FailType("stop", "a text or an array of texts", *stop);
  for (const Json& text : *stop) {
    if (!text.is_string()) return fields.FailType("stop", "a text or an array of texts", *stop);
    request.add_stop_sequences(text.get<std::string>());
  }
}

void ReadLogitBias(Fields& fields, inference::v1::SamplingParams& sampling) {
  const Json* biases = fields.Take("logit_bias");
  if (biases == nullptr) return;
  constexpr absl::string_view kWanted = "an object of token ids and numbers";
  if (!biases->is_object()) return fields.FailType("logit_bias", kWanted, *biases);
  for (auto it = biases->begin(); it != biases->end(); ++it) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(it.key(), &id) || !it->is_number()) {
      return fields.FailType("logit_bias", kWanted, *biases);
    }
    (*sampling.mutable_logit_bias())[id] = it->get<float>();
  }
}

// The text of `schema`, which is at `path` of the body: its members in the order in which the
// client wrote them, which Json forgets.
std::string SchemaText(absl::string_view body, const std::vector<std::string>& path,
                       const Json& schema) {
  using OrderedJson = nlohmann::ordered_json;
  std::string sorted = schema.dump();
  // Too long for the engine in any order; and an ordered object takes quadratic time to read.
  if (sorted.size() > kMaxConstraintBytes) return sorted;
  const auto only_path = [&](int depth, OrderedJson::parse_event_t event, OrderedJson& key) {
    const auto level = static_cast<size_t>(depth);
    return event != OrderedJson::parse_event_t::key || level < 1 || level > path.size() ||
           key == path[level - 1];
  };
  OrderedJson at = OrderedJson::parse(body.begin(), body.end(), only_path, false);
  for (const std::string& name : path) {
    const auto it = at.find(name);
    if (it == at.end()) return sorted;
    at = OrderedJson(std::move(*it));
  }
  return at.dump();
}

void ReadResponseFormat(Fields& fields, absl::string_view body, GenerateTextRequest& request) {
  const Json* format = fields.Take("response_format");
  if (format == nullptr) return;
  if (!format->is_object()) return fields.FailType("response_format", "an object", *format);
  Fields inner(*format, "response_format.");
  const std::string type = inner.String("type").value_or("");
  if (type == "json_object") {
    request.set_json_object(true);
  } else if (type == "json_schema") {
    const Json* holder = inner.Take("json_schema");
    if (holder == nullptr || !holder->is_object()) {
      inner.FailType("json_schema", "an object with a schema",
                     holder == nullptr ? Json() : *holder);
    } else {
      Fields schema(*holder, "response_format.json_schema.");
      schema.String("name");
      schema.String("description");
      schema.Bool("strict");  // always
      const Json* text = schema.Take("schema");
      if (text == nullptr) {
        schema.Fail("schema", "wanted a JSON schema");
      } else {
        request.set_json_schema(
            SchemaText(body, {"response_format", "json_schema", "schema"}, *text));
      }
      inner.Absorb(schema.Finish());
    }
  } else if (type != "text") {
    inner.Fail("type", absl::StrCat("wanted text, json_object or json_schema, got \"",
                                    type.substr(0, 80), "\""));
  }
  fields.Absorb(inner.Finish());
}

// vLLM's: exactly one of json, regex, choice and json_object.
void ReadStructuredOutputs(Fields& fields, absl::string_view body, GenerateTextRequest& request) {
  const Json* outputs = fields.Take("structured_outputs");
  if (outputs == nullptr) return;
  if (!outputs->is_object()) return fields.FailType("structured_outputs", "an object", *outputs);
  if (request.constraint_case() != GenerateTextRequest::CONSTRAINT_NOT_SET) {
    return fields.Fail("structured_outputs",
                       "not together with a response_format that asks for JSON");
  }
  Fields inner(*outputs, "structured_outputs.");
  int count = 0;
  if (const Json* schema = inner.Take("json"); schema != nullptr) {
    ++count;
    // vLLM takes a schema also as its text.
    request.set_json_schema(schema->is_string()
                                ? schema->get<std::string>()
                                : SchemaText(body, {"structured_outputs", "json"}, *schema));
  }
  if (const auto regex = inner.String("regex")) {
    ++count;
    request.set_regex(*regex);
  }
  if (const Json* choice = inner.Take("choice"); choice != nullptr) {
    ++count;
    request.mutable_choice();
    if (!choice->is_array()) inner.FailType("choice", "an array of texts", *choice);
    for (const Json& text : choice->is_array() ? *choice : Json::array()) {
      if (!text.is_string()) {
        inner.FailType("choice", "an array of texts", *choice);
        break;
      }
      request.mutable_choice()->add_texts(text.get<std::string>());
    }
  }
  if (inner.Bool("json_object").value_or(false)) {
    ++count;
    request.set_json_object(true);
  }
  for (const char* name : {"grammar", "structural_tag", "whitespace_pattern"}) inner.Refuse(name);
  for (const char* name : {"disable_any_whitespace", "disable_additional_properties"}) {
    inner.Refuse(name, false);
  }
  fields.Absorb(inner.Finish());
  if (count != 1) {
    fields.Fail("structured_outputs", "wanted exactly one of json, regex, choice and json_object");
  }
}

// The model as the client wrote it.
template <typename Request>
std::string ReadModel(Fields& fields, Request& request) {
  std::string model = fields.String("model").value_or("");
  if (model.empty()) fields.Fail("model", "wanted the name of a model of GET /v1/models");
  request.set_model(absl::StartsWith(model, "models/") ? model : absl::StrCat("models/", model));
  return model;
}

void ReadIds(Fields& fields, const std::string& name, const Json& array,
             google::protobuf::RepeatedField<int32_t>* ids) {
  for (const Json& id : array) {
    const auto value = fields.AsInt(name, id, 0, std::numeric_limits<int32_t>::max());
    if (value.has_value()) ids->Add(static_cast<int32_t>(*value));
  }
}

// What both kinds of request have; ranges are the engine's to check.
void ReadCommon(Fields& fields, absl::string_view body, OpenAiRequest& out,
                GenerateTextRequest& request) {
  out.model = ReadModel(fields, request);
  out.stream = fields.Bool("stream").value_or(false);
  if (const Json* options = fields.Take("stream_options"); options != nullptr) {
    if (!options->is_object()) {
      fields.FailType("stream_options", "an object", *options);
    } else if (!out.stream) {
      fields.Fail("stream_options", "only allowed when stream is true");
    } else {
      Fields inner(*options, "stream_options.");
      out.include_usage = inner.Bool("include_usage").value_or(false);
      inner.Refuse("include_obfuscation", false);
      fields.Absorb(inner.Finish());
    }
  }
  inference::v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(fields.Float("temperature").value_or(1));
  if (const auto p = fields.Float("top_p")) sampling.set_top_p(*p);
  if (const auto k = fields.Int("top_k")) {
    sampling.set_top_k(static_cast<int32_t>(*k == -1 ? 0 : *k));  // vLLM's "no limit"
  }
  if (const auto p = fields.Float("min_p")) sampling.set_min_p(*p);
  if (const auto p = fields.Float("typical_p")) sampling.set_typical_p(*p);
  if (const auto p = fields.Float("repetition_penalty")) sampling.set_repetition_penalty(*p);
  sampling.set_presence_penalty(fields.Float("presence_penalty").value_or(0));
  sampling.set_frequency_penalty(fields.Float("frequency_penalty").value_or(0));
  if (const auto seed = fields.Int("seed", std::numeric_limits<int64_t>::min(),
                                   std::numeric_limits<int64_t>::max())) {
    sampling.set_seed(*seed);
  }
  ReadLogitBias(fields, sampling);
  ReadStop(fields, request);
  if (const Json* ids = fields.Take("stop_token_ids"); ids != nullptr) {
    if (!ids->is_array()) {
      fields.FailType("stop_token_ids", "an array of token ids", *ids);
    } else {
      ReadIds(fields, "stop_token_ids", *ids, request.mutable_stop_token_ids());
    }
  }
  if (const auto count = fields.Int("prompt_logprobs")) {
    request.set_num_prompt_logprobs(static_cast<int32_t>(*count));
  }
  request.set_min_output_tokens(static_cast<int32_t>(fields.Int("min_tokens").value_or(0)));
  request.set_ignore_end_of_text(fields.Bool("ignore_eos").value_or(false));
  // vLLM's: lower is earlier.
  if (const auto priority = fields.Int("priority", -1, 1)) {
    request.set_priority(
        static_cast<GenerateTextRequest::Priority>(GenerateTextRequest::NORMAL - *priority));
  }
  ReadResponseFormat(fields, body, request);
  ReadStructuredOutputs(fields, body, request);
  fields.Ignore("user");
  fields.Ignore("safety_identifier");
  fields.Ignore("metadata");
  fields.Refuse("service_tier", "auto");
}

int ReadChoices(Fields& fields) {
  return static_cast<int>(fields.Int("n", 1, kMaxChoices).value_or(1));
}

// n times each prompt; with a seed, each choice has its own.
void AddChoices(OpenAiRequest::Choice choice, int n, OpenAiRequest& out) {
  for (int i = 0; i < n; ++i) {
    choice.is_first_of_prompt = i == 0;
    out.choices.push_back(choice);
    inference::v1::SamplingParams& sampling = *out.choices.back().request.mutable_sampling();
    if (sampling.has_seed()) {
      sampling.set_seed(static_cast<int64_t>(static_cast<uint64_t>(sampling.seed()) + i));
    }
  }
}

// The prompts of a completion: a text, ids, or an array of either.
std::vector<Json> PromptsOf(const Json& prompt) {
  const bool many = prompt.is_array() && !prompt.empty() &&
                    (prompt.front().is_string() || prompt.front().is_array());
  return many ? std::vector<Json>(prompt.begin(), prompt.end()) : std::vector<Json>{prompt};
}

void ReadContent(Fields& fields, const std::string& name, const Json& content, std::string& out) {
  constexpr absl::string_view kWanted = "a text or an array of {\"type\": \"text\", \"text\": ...}";
  if (content.is_string()) {
    out = content.get<std::string>();
    return;
  }
  if (!content.is_array()) return fields.FailType(name, kWanted, content);
  for (const Json& part : content) {
    if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
        !part["text"].is_string()) {
      return fields.FailType(name, kWanted, part);
    }
    out += part["text"].get<std::string>();
  }
}

void ReadMessages(Fields& fields, Chat& chat) {
  const Json* messages = fields.Take("messages");
  if (messages == nullptr || !messages->is_array()) {
    return fields.FailType("messages", "an array of messages",
                           messages == nullptr ? Json() : *messages);
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    const Json& message = (*messages)[i];
    const std::string name = absl::StrCat("messages[", i, "]");
    if (!message.is_object()) return fields.FailType(name, "an object", message);
    Fields inner(message, absl::StrCat(name, "."));
    const std::string role = inner.String("role").value_or("");
    Chat::Message& out = *chat.add_messages();
    if (role == "system" || role == "developer") {
      out.set_role(Chat::Message::SYSTEM);
    } else if (role == "user") {
      out.set_role(Chat::Message::USER);
    } else if (role == "assistant") {
      out.set_role(Chat::Message::ASSISTANT);
    } else {
      inner.Fail("role", absl::StrCat("wanted system, developer, user or assistant, got \"",
                                      role.substr(0, 80), "\""));
    }
    if (const Json* content = inner.Take("content"); content != nullptr) {
      ReadContent(inner, "content", *content, *out.mutable_content());
    } else {
      inner.Fail("content", "wanted a text");
    }
    inner.Ignore("name");
    inner.Refuse("refusal");
    inner.Refuse("audio");
    inner.Refuse("tool_calls", Json::array());
    inner.Refuse("function_call");
    fields.Absorb(inner.Finish());
  }
}

}  // namespace

absl::StatusOr<OpenAiRequest> ParseCompletion(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json document, ParseObject(body));
  OpenAiRequest out;
  GenerateTextRequest request;
  Fields fields(document);
  ReadCommon(fields, body, out, request);
  request.set_max_output_tokens(
      static_cast<int32_t>(fields.Int("max_tokens", 0).value_or(kDefaultCompletionTokens)));
  request.set_prompt_only(request.max_output_tokens() == 0);
  OpenAiRequest::Choice choice{.prompt_logprobs = request.has_num_prompt_logprobs()};
  if (const auto count = fields.Int("logprobs", 0, 20)) {
    request.set_num_logprobs(static_cast<int32_t>(*count));
  }
  choice.echo = fields.Bool("echo").value_or(false);
  choice.echo_logprobs = choice.echo && request.has_num_logprobs();
  if (choice.echo_logprobs) {
    if (choice.prompt_logprobs && request.num_prompt_logprobs() != request.num_logprobs()) {
      fields.Fail("prompt_logprobs", "with echo, this server supports only the number of logprobs");
    }
    request.set_num_prompt_logprobs(request.num_logprobs());
  }
  const int n = ReadChoices(fields);
  fields.Refuse("best_of", n);
  fields.Refuse("suffix");
  const Json* prompt = fields.Take("prompt");
  if (prompt == nullptr) fields.Fail("prompt", "wanted a text, token ids, or an array of either");
  const std::vector<Json> prompts = prompt == nullptr ? std::vector<Json>() : PromptsOf(*prompt);
  if (prompts.size() * n > kMaxChoices) {
    fields.Fail("prompt", absl::StrCat(prompts.size(), " prompts times n are more than ",
                                       kMaxChoices, " choices"));
  }
  RETURN_IF_ERROR(fields.Finish());
  for (const Json& one : prompts) {
    GenerateTextRequest with_prompt = request;
    if (one.is_string()) {
      with_prompt.set_prompt(one.get<std::string>());
    } else if (one.is_array()) {
      ReadIds(fields, "prompt", one, with_prompt.mutable_prompt_tokens()->mutable_ids());
    } else {
      fields.FailType("prompt", "a text, token ids, or an array of either", one);
    }
    choice.request = std::move(with_prompt);
    AddChoices(choice, n, out);
  }
  RETURN_IF_ERROR(fields.Finish());
  return out;
}

absl::StatusOr<OpenAiRequest> ParseChatCompletion(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json document, ParseObject(body));
  OpenAiRequest out;
  out.chat = true;
  GenerateTextRequest request;
  Fields fields(document);
  ReadCommon(fields, body, out, request);
  const auto max_tokens = fields.Int("max_tokens", 1);
  const auto max_completion_tokens = fields.Int("max_completion_tokens", 1);
  request.set_max_output_tokens(
      static_cast<int32_t>(max_completion_tokens.value_or(max_tokens.value_or(0))));
  const bool logprobs = fields.Bool("logprobs").value_or(false);
  const auto top_logprobs = fields.Int("top_logprobs", 0, 20);
  if (logprobs) request.set_num_logprobs(static_cast<int32_t>(top_logprobs.value_or(0)));
  if (top_logprobs.has_value() && !logprobs) {
    fields.Fail("top_logprobs", "only allowed when logprobs is true");
  }
  const int n = ReadChoices(fields);
  ReadMessages(fields, *request.mutable_chat());
  fields.Refuse("tools", Json::array());
  fields.Refuse("tool_choice", "none");
  fields.Refuse("functions", Json::array());
  fields.Refuse("function_call", "none");
  fields.Refuse("modalities", Json::array({"text"}));
  fields.Refuse("store", false);
  for (const char* name : {"audio", "prediction", "reasoning_effort", "verbosity",
                           "web_search_options", "parallel_tool_calls", "prompt_cache_key"}) {
    fields.Refuse(name);
  }
  RETURN_IF_ERROR(fields.Finish());
  AddChoices({.request = request, .prompt_logprobs = request.has_num_prompt_logprobs()}, n, out);
  return out;
}

absl::StatusOr<OpenAiTokenize> ParseTokenize(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json document, ParseObject(body));
  OpenAiTokenize out;
  Fields fields(document);
  ReadModel(fields, out.request);
  if (document.contains("messages")) {
    ReadMessages(fields, *out.request.mutable_chat());
    // Chats come as they are answered.
    fields.Refuse("add_generation_prompt", true);
    fields.Refuse("add_special_tokens", false);
    fields.Refuse("continue_final_message", false);
    fields.Refuse("tools", Json::array());
  } else {
    const auto prompt = fields.String("prompt");
    if (!prompt.has_value()) fields.Fail("prompt", "wanted a text, or messages in its place");
    out.request.set_text(prompt.value_or(""));
    if (const auto add = fields.Bool("add_special_tokens")) {
      out.request.set_add_special_tokens(*add);
    }
  }
  out.token_strs = fields.Bool("return_token_strs").value_or(false);
  out.request.set_with_pieces(out.token_strs);
  RETURN_IF_ERROR(fields.Finish());
  return out;
}

absl::StatusOr<inference::v1::DetokenizeRequest> ParseDetokenize(absl::string_view body) {
  ASSIGN_OR_RETURN(const Json document, ParseObject(body));
  inference::v1::DetokenizeRequest request;
  request.set_keep_special(true);
  Fields fields(document);
  ReadModel(fields, request);
  const Json* tokens = fields.Take("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    fields.FailType("tokens", "an array of token ids", tokens == nullptr ? Json() : *tokens);
  } else {
    ReadIds(fields, "tokens", *tokens, request.mutable_token_ids());
  }
  RETURN_IF_ERROR(fields.Finish());
  return request;
}

std::string ParamOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kParamPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

}  // namespace quern

#include "services/inference/request_check.h"

#include <absl/strings/cord.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"
#include "core/tokenizer/chat.h"

namespace quern {
namespace {

using inference::v1::Chat;
using inference::v1::CountTokensRequest;
using inference::v1::CreateModelRequest;
using inference::v1::DetokenizeRequest;
using inference::v1::DetokenizeResponse;
using inference::v1::GenerateTextRequest;
using inference::v1::Model;
using inference::v1::TokenizeRequest;
using inference::v1::TokenizeResponse;

constexpr char kTooLongPayload[] = "quern/too-long";

absl::Status TooLong(absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kTooLongPayload, absl::Cord("1"));
  return status;
}

absl::Status CheckChat(const Chat& chat) {
  const int count = chat.messages_size();
  if (count < 1 || count > kMaxChatMessages) {
    return absl::InvalidArgumentError(absl::StrCat("chat.messages: 1 to ", kMaxChatMessages,
                                                   " messages are wanted, got ", count));
  }
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    const Chat::Message& message = chat.messages(i);
    if (message.role() != Chat::Message::SYSTEM && message.role() != Chat::Message::USER &&
        message.role() != Chat::Message::ASSISTANT) {
      return absl::InvalidArgumentError(
          absl::StrCat("chat.messages[", i, "].role must be SYSTEM, USER or ASSISTANT, got ",
                       static_cast<int>(message.role())));
    }
    bytes += static_cast<int64_t>(message.content().size());
  }
  if (bytes > kMaxPromptBytes) {
    return TooLong(absl::StrCat("chat.messages: the contents have ", bytes, " bytes, at most ",
                                kMaxPromptBytes, " are taken"));
  }
  if (chat.messages(count - 1).role() != Chat::Message::USER) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat.messages[", count - 1, "].role: the last message must be the USER's"));
  }
  return absl::OkStatus();
}

absl::Status CheckInput(const GenerateTextRequest& request) {
  switch (request.input_case()) {
    case GenerateTextRequest::kPrompt:
      if (request.prompt().empty()) {
        return absl::InvalidArgumentError("prompt must not be empty");
      }
      if (request.prompt().size() > kMaxPromptBytes) {
        return TooLong(absl::StrCat("prompt has ", request.prompt().size(), " bytes, at most ",
                                    kMaxPromptBytes, " are taken"));
      }
      return absl::OkStatus();
    case GenerateTextRequest::kPromptTokens:
      if (request.prompt_tokens().ids().empty()) {
        return absl::InvalidArgumentError("prompt_tokens.ids must not be empty");
      }
      return absl::OkStatus();
    case GenerateTextRequest::kChat:
      return CheckChat(request.chat());
    case GenerateTextRequest::INPUT_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("input: one of prompt, prompt_tokens and chat must be set");
}

absl::Status NoTokenizer(const ActiveModel& model, absl::string_view field) {
  return absl::FailedPreconditionError(absl::StrCat(
      field, ": models/", model.id, " came without a tokenizer; send prompt_tokens instead"));
}

std::vector<ChatMessage> MessagesOf(const Chat& chat) {
  std::vector<ChatMessage> messages;
  for (const Chat::Message& message : chat.messages()) {
    ChatMessage::Role role = ChatMessage::Role::kUser;
    if (message.role() == Chat::Message::SYSTEM) role = ChatMessage::Role::kSystem;
    if (message.role() == Chat::Message::ASSISTANT) role = ChatMessage::Role::kAssistant;
    messages.push_back({role, message.content()});
  }
  return messages;
}

absl::StatusOr<std::vector<int32_t>> TokenizeText(const std::string& text, bool add_special_tokens,
                                                  const ActiveModel& model) {
  if (text.size() > kMaxPromptBytes) {
    return TooLong(
        absl::StrCat("text has ", text.size(), " bytes, at most ", kMaxPromptBytes, " are taken"));
  }
  if (model.tokenizer == nullptr) return NoTokenizer(model, "text");
  return model.tokenizer->Encode(text, {.add_special_tokens = add_special_tokens});
}

absl::StatusOr<std::vector<int32_t>> TokenizeChat(const Chat& chat, const ActiveModel& model,
                                                  const Engine& engine) {
  RETURN_IF_ERROR(CheckChat(chat));
  if (model.tokenizer == nullptr) return NoTokenizer(model, "chat");
  return engine.EncodeChat(model.handle, MessagesOf(chat));
}

absl::StatusOr<std::vector<int32_t>> PromptOf(const GenerateTextRequest& request,
                                              const ActiveModel& model, const Engine& engine) {
  if (request.has_prompt_tokens()) {
    const auto& ids = request.prompt_tokens().ids();
    return std::vector<int32_t>(ids.begin(), ids.end());
  }
  if (model.tokenizer == nullptr) {
    return NoTokenizer(model, request.has_chat() ? "chat" : "prompt");
  }
  if (request.has_prompt()) return model.tokenizer->Encode(request.prompt());
  return engine.EncodeChat(model.handle, MessagesOf(request.chat()));
}

absl::Status CheckPrompt(const GenerateTextRequest& request, const ActiveModel& model,
                         const std::vector<int32_t>& prompt) {
  const int context = model.info.config.max_position_embeddings;
  const absl::string_view field = request.has_prompt_tokens() ? "prompt_tokens.ids"
                                  : request.has_chat()        ? "chat"
                                                              : "prompt";
  if (prompt.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": no token is left of it"));
  }
  if (prompt.size() > static_cast<size_t>(context)) {
    return TooLong(absl::StrCat(field, ": ", prompt.size(), " tokens, the context of models/",
                                model.id, " is ", context));
  }
  if (request.max_output_tokens() > context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_output_tokens is ", request.max_output_tokens(), ", the context of models/", model.id,
        " is ", context, " tokens; 0 means up to the context"));
  }
  const int vocab_size = model.info.config.vocab_size;
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("prompt_tokens.ids[", i, "] is ", prompt[i],
                                                     ", the vocabulary of models/", model.id,
                                                     " is [0, ", vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

SamplingParams SamplingOf(const inference::v1::SamplingParams& sampling) {
  SamplingParams params;
  params.temperature = sampling.temperature();
  params.top_k = sampling.top_k();
  if (sampling.has_typical_p()) params.typical_p = sampling.typical_p();
  if (sampling.has_top_p()) params.top_p = sampling.top_p();
  if (sampling.has_min_p()) params.min_p = sampling.min_p();
  if (sampling.has_repetition_penalty()) params.repetition_penalty = sampling.repetition_penalty();
  params.presence_penalty = sampling.presence_penalty();
  params.frequency_penalty = sampling.frequency_penalty();
  params.logit_bias.insert(sampling.logit_bias().begin(), sampling.logit_bias().end());
  // All 64 bits are a seed; clients see them as a signed number.
  if (sampling.has_seed()) params.seed = static_cast<uint64_t>(sampling.seed());
  return params;
}

absl::StatusOr<std::string> ParseName(absl::string_view name, absl::string_view field,
                                      absl::string_view collection, absl::string_view id_name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, collection)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " must have the form ", collection, id_name, ", got ", Quoted(name)));
  }
  RETURN_IF_ERROR(CheckModelId(id, absl::StrCat(field, ": the part after ", collection)));
  return std::string(id);
}

absl::Status CheckArtifactName(absl::string_view name, absl::string_view field) {
  absl::string_view digest = name;
  if (absl::ConsumePrefix(&digest, "artifacts/") && Digest::Parse(digest).ok()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, " must be artifacts/ and 64 lower-case hex digits, got ", Quoted(name)));
}

}  // namespace

absl::Status CheckModelId(absl::string_view id, absl::string_view field) {
  constexpr size_t kMaxIdBytes = 63;
  bool good = !id.empty() && id.size() <= kMaxIdBytes;
  for (const char c : id) {
    good = good && ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-');
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " must be 1 to 63 of [a-z0-9-], got ", Quoted(id)));
}

absl::StatusOr<std::string> ParseModelName(absl::string_view name, absl::string_view field) {
  return ParseName(name, field, "models/", "{model}");
}

absl::StatusOr<std::string> ParseAliasName(absl::string_view name, absl::string_view field) {
  return ParseName(name, field, "aliases/", "{alias}");
}

absl::Status CheckCreateModel(const CreateModelRequest& request) {
  RETURN_IF_ERROR(CheckModelId(request.model_id(), "model_id"));
  if (!Model::KvCacheType_IsValid(request.model().kv_cache_type())) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.kv_cache_type: ", request.model().kv_cache_type(),
                     " is not known, wanted FLOAT16, INT8 or INT4"));
  }
  if (request.model().has_speculation()) {
    const Model::Speculation& speculation = request.model().speculation();
    if (speculation.max_guesses() < 1 || speculation.max_guesses() > kMaxGuesses) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.speculation.max_guesses must be in [1, ", kMaxGuesses, "], got ",
                       speculation.max_guesses()));
    }
    if (!speculation.draft_artifact().empty()) {
      RETURN_IF_ERROR(
          CheckArtifactName(speculation.draft_artifact(), "model.speculation.draft_artifact"));
    }
  }
  switch (request.model().source_case()) {
    case Model::kArtifact:
      return CheckArtifactName(request.model().artifact(), "model.artifact");
    case Model::kCheckpoint:
      if (request.model().checkpoint().empty()) {
        return absl::InvalidArgumentError("model.checkpoint must not be empty");
      }
      return absl::OkStatus();
    case Model::SOURCE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("model.source: one of artifact and checkpoint must be set");
}

Priority PriorityOf(GenerateTextRequest::Priority priority) {
  switch (priority) {
    case GenerateTextRequest::LOW:
      return Priority::kLow;
    case GenerateTextRequest::HIGH:
      return Priority::kHigh;
    default:
      return Priority::kNormal;
  }
}

absl::Status CheckGenerateText(const GenerateTextRequest& request) {
  RETURN_IF_ERROR(ParseModelName(request.model(), "model").status());
  RETURN_IF_ERROR(CheckInput(request));
  if (!GenerateTextRequest::Priority_IsValid(request.priority())) {
    return absl::InvalidArgumentError(absl::StrCat("priority must be LOW, NORMAL or HIGH, got ",
                                                   static_cast<int>(request.priority())));
  }
  if (request.has_time_limit()) {
    // As the well-known type is defined.
    constexpr int64_t kMaxSeconds = 315'576'000'000;
    const google::protobuf::Duration& limit = request.time_limit();
    if (limit.seconds() < 0 || limit.seconds() > kMaxSeconds || limit.nanos() < 0 ||
        limit.nanos() > 999'999'999) {
      return absl::InvalidArgumentError(absl::StrCat("time_limit is ", limit.seconds(), " s and ",
                                                     limit.nanos(), " ns, wanted more than 0"));
    }
  }
  if (request.has_json_object() && !request.json_object()) {
    return absl::InvalidArgumentError("json_object must be true, or not set");
  }
  return absl::OkStatus();
}

std::optional<ConstraintSpec> ConstraintOf(const GenerateTextRequest& request) {
  using Kind = ConstraintSpec::Kind;
  switch (request.constraint_case()) {
    case GenerateTextRequest::kJsonSchema:
      return ConstraintSpec{.kind = Kind::kJsonSchema, .text = request.json_schema()};
    case GenerateTextRequest::kRegex:
      return ConstraintSpec{.kind = Kind::kRegex, .text = request.regex()};
    case GenerateTextRequest::kChoice:
      return ConstraintSpec{
          .kind = Kind::kChoice,
          .choices = {request.choice().texts().begin(), request.choice().texts().end()}};
    case GenerateTextRequest::kJsonObject:
      return ConstraintSpec{.kind = Kind::kJsonObject};
    case GenerateTextRequest::CONSTRAINT_NOT_SET:
      break;
  }
  return std::nullopt;
}

absl::StatusOr<GenerationRequest> MakeGeneration(const GenerateTextRequest& request,
                                                 const ActiveModel& model, const Engine& engine,
                                                 absl::Time deadline) {
  GenerationRequest generation;
  ASSIGN_OR_RETURN(generation.prompt, PromptOf(request, model, engine));
  RETURN_IF_ERROR(CheckPrompt(request, model, generation.prompt));
  generation.sampling = SamplingOf(request.sampling());
  generation.max_output_tokens = request.max_output_tokens();
  generation.stop_sequences.assign(request.stop_sequences().begin(),
                                   request.stop_sequences().end());
  generation.min_output_tokens = request.min_output_tokens();
  generation.ignore_end_of_text = request.ignore_end_of_text();
  if (request.has_num_logprobs()) generation.num_logprobs = request.num_logprobs();
  if (request.has_num_prompt_logprobs()) {
    generation.num_prompt_logprobs = request.num_prompt_logprobs();
  }
  generation.prompt_only = request.prompt_only();
  if (request.has_chat()) {
    generation.stop_ids = ChatStopIds(model.info.chat_format, *model.tokenizer);
  }
  generation.stop_ids.insert(generation.stop_ids.end(), request.stop_token_ids().begin(),
                             request.stop_token_ids().end());
  generation.priority = PriorityOf(request.priority());
  generation.deadline = deadline;
  if (request.has_time_limit()) {
    generation.time_limit = absl::Seconds(request.time_limit().seconds()) +
                            absl::Nanoseconds(request.time_limit().nanos());
  }
  return generation;
}

absl::StatusOr<int> CountPromptTokens(const CountTokensRequest& request, const ActiveModel& model,
                                      const Engine& engine) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   request.has_chat()
                       ? TokenizeChat(request.chat(), model, engine)
                       : TokenizeText(request.text(), /*add_special_tokens=*/true, model));
  return static_cast<int>(ids.size());
}

absl::StatusOr<TokenizeResponse> TokenizeInput(const TokenizeRequest& request,
                                               const ActiveModel& model, const Engine& engine) {
  if (request.input_case() == TokenizeRequest::INPUT_NOT_SET) {
    return absl::InvalidArgumentError("input: one of text and chat must be set");
  }
  const bool add_special_tokens = !request.has_add_special_tokens() || request.add_special_tokens();
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   request.has_chat() ? TokenizeChat(request.chat(), model, engine)
                                      : TokenizeText(request.text(), add_special_tokens, model));
  TokenizeResponse response;
  response.mutable_token_ids()->Add(ids.begin(), ids.end());
  if (!request.with_pieces()) return response;
  for (const int32_t id : ids) {
    const absl::string_view bytes = model.tokenizer->TokenBytes(id);
    response.add_pieces(bytes.data(), bytes.size());
  }
  return response;
}

absl::StatusOr<DetokenizeResponse> DetokenizeIds(const DetokenizeRequest& request,
                                                 const ActiveModel& model) {
  if (request.token_ids_size() > kMaxDetokenizeIds) {
    return TooLong(absl::StrCat("token_ids: ", request.token_ids_size(), " ids, at most ",
                                kMaxDetokenizeIds, " are taken"));
  }
  if (model.tokenizer == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("token_ids: models/", model.id, " came without a tokenizer"));
  }
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const int32_t id = request.token_ids(i);
    if (id < 0 || id >= model.tokenizer->vocab_size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids[", i, "] is ", id, ", the vocabulary of models/", model.id,
                       " is [0, ", model.tokenizer->vocab_size(), ")"));
    }
  }
  const std::string bytes = model.tokenizer->Decode(
      absl::MakeConstSpan(request.token_ids().data(), request.token_ids_size()),
      request.keep_special());
  DetokenizeResponse response;
  response.set_text(ReplaceInvalidUtf8(bytes));
  return response;
}

bool IsTooLong(const absl::Status& status) {
  return status.GetPayload(kTooLongPayload).has_value();
}

}  // namespace quern

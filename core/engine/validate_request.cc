// What a model says of a request before it takes it.

#include <absl/strings/str_cat.h>

#include "core/base/status_macros.h"
#include "core/engine/served_model.h"

namespace quern {
namespace {

constexpr int kMaxStopSequences = 4;
constexpr int kMaxStopSequenceBytes = 64;

}  // namespace

absl::Status ServedModel::Validate(const GenerationRequest& request) const {
  RETURN_IF_ERROR(request.sampling.Validate());
  if (request.prompt.empty()) {
    return absl::InvalidArgumentError("the prompt has no tokens, wanted at least 1");
  }
  if (request.prompt.size() > static_cast<size_t>(info_.max_context_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", request.prompt.size(), " tokens, the context ", info_.max_context_tokens,
        info_.max_context_tokens < info_.config.max_position_embeddings
            ? absl::StrCat(" (limited by the memory for the KV cache; the model's is ",
                           info_.config.max_position_embeddings, ")")
            : "",
        "; shorten the prompt"));
  }
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] < 0 || request.prompt[i] >= info_.config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("prompt token ", i, " is ", request.prompt[i],
                                                     ", the vocabulary has ",
                                                     info_.config.vocab_size));
    }
  }
  for (const auto& [id, bias] : request.sampling.logit_bias) {
    if (id < 0 || id >= info_.config.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("there is a logit bias for token ", id,
                                                     ", the vocabulary has ",
                                                     info_.config.vocab_size));
    }
  }
  if (request.stop_ids.size() > kMaxStopIds) {
    return absl::InvalidArgumentError(absl::StrCat("there are ", request.stop_ids.size(),
                                                   " stop ids, at most ", kMaxStopIds,
                                                   " are supported"));
  }
  for (const int32_t id : request.stop_ids) {
    if (id < 0 || id >= info_.config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("a stop id is ", id, ", the vocabulary has ", info_.config.vocab_size));
    }
  }
  if (request.min_output_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_output_tokens is ", request.min_output_tokens, ", wanted 0 or more"));
  }
  if (request.max_output_tokens > 0 && request.min_output_tokens > request.max_output_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_output_tokens is ", request.min_output_tokens, ", max_output_tokens ",
                     request.max_output_tokens, "; wanted no more than that"));
  }
  if (request.constraint != nullptr && request.ignore_end_of_text) {
    return absl::InvalidArgumentError(
        "ignore_end_of_text and a constraint exclude each other: its texts end");
  }
  if (request.constraint != nullptr &&
      request.constraint->vocab_size() != info_.config.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the constraint was compiled for a vocabulary of ", request.constraint->vocab_size(),
        ", the model has ", info_.config.vocab_size));
  }
  if (const int count = request.num_logprobs.value_or(0); count < 0 || count > kMaxLogprobs) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_logprobs is ", count, ", wanted 0 to ", kMaxLogprobs));
  }
  if (const int count = request.num_prompt_logprobs.value_or(0);
      count < 0 || count > kMaxLogprobs) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_prompt_logprobs is ", count, ", wanted 0 to ", kMaxLogprobs));
  }
  if (request.prompt_only && (request.max_output_tokens != 0 || request.min_output_tokens != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt_only is set, max_output_tokens is ", request.max_output_tokens,
                     " and min_output_tokens ", request.min_output_tokens, "; wanted 0 for both"));
  }
  if (request.max_output_tokens < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_output_tokens is ", request.max_output_tokens, ", wanted 0 (no limit) or more"));
  }
  if (request.time_limit <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "time_limit is ", absl::FormatDuration(request.time_limit), ", wanted more than 0"));
  }
  if (request.stop_sequences.size() > kMaxStopSequences) {
    return absl::InvalidArgumentError(absl::StrCat("there are ", request.stop_sequences.size(),
                                                   " stop sequences, at most ", kMaxStopSequences,
                                                   " are supported"));
  }
  if (!request.stop_sequences.empty() && tokenizer_ == nullptr) {
    return absl::InvalidArgumentError(
        "stop sequences need text, and the model has no tokenizer; use stop_ids");
  }
  for (const std::string& stop : request.stop_sequences) {
    if (stop.empty() || stop.size() > kMaxStopSequenceBytes) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a stop sequence has ", stop.size(), " bytes, wanted 1 to ", kMaxStopSequenceBytes));
    }
  }
  return absl::OkStatus();
}

}  // namespace quern

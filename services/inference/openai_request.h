#ifndef QUERN_SERVICES_INFERENCE_OPENAI_REQUEST_H_
#define QUERN_SERVICES_INFERENCE_OPENAI_REQUEST_H_

// Bodies of OpenAI's API (platform.openai.com/docs/api-reference: completions, chat completions) as
// requests of ours. What OpenAI's API has and this server has not is refused by name, as is what
// neither knows. Beyond OpenAI's: top_k, min_p, typical_p, repetition_penalty, min_tokens,
// ignore_eos, stop_token_ids, prompt_logprobs, structured_outputs, priority (-1 to 1), spelled as
// vLLM spells them; and vLLM's /tokenize and /detokenize.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <string>
#include <vector>

namespace quern {

// Choices of one request: prompts times n.
inline constexpr int kMaxChoices = 32;

struct OpenAiRequest {
  struct Choice {
    inference::v1::GenerateTextRequest request;
    bool echo = false;                // the prompt's text stands before the answer's
    bool echo_logprobs = false;       // and so do its logprobs
    bool prompt_logprobs = false;     // the prompt's logprobs stand in a field of their own
    bool is_first_of_prompt = false;  // of the n with the same prompt
  };
  std::vector<Choice> choices;
  std::string model;  // as the client wrote it
  bool chat = false;
  bool stream = false;
  bool include_usage = false;  // in a chunk of its own at the end of a stream
};

// INVALID_ARGUMENT with ParamOf the field at fault.
absl::StatusOr<OpenAiRequest> ParseCompletion(absl::string_view body);
absl::StatusOr<OpenAiRequest> ParseChatCompletion(absl::string_view body);

struct OpenAiTokenize {
  inference::v1::TokenizeRequest request;
  bool token_strs = false;  // the answer has the tokens' texts
};
absl::StatusOr<OpenAiTokenize> ParseTokenize(absl::string_view body);
absl::StatusOr<inference::v1::DetokenizeRequest> ParseDetokenize(absl::string_view body);

// The field that a status of these functions names, or "".
std::string ParamOf(const absl::Status& status);

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_OPENAI_REQUEST_H_

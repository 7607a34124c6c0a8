#ifndef QUERN_SERVICES_INFERENCE_OPENAI_RESPONSE_H_
#define QUERN_SERVICES_INFERENCE_OPENAI_RESPONSE_H_

// Bodies that OpenAI's API answers with (platform.openai.com/docs/api-reference).

#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/tokenizer/tokenizer.h"
#include "services/common/http_server.h"

namespace quern {

// What every body of one answer says of it.
struct OpenAiAnswer {
  std::string id;
  int64_t created = 0;  // Unix time
  std::string model;
  std::string system_fingerprint;
  bool chat = false;
  std::shared_ptr<const Tokenizer> tokenizer;  // the model's; may be null
};

// "cmpl-" or "chatcmpl-" and 128 random bits.
std::string NewOpenAiId(bool chat);

// A choice as far as it has come: all pieces of its stream together, or one of them.
struct OpenAiChoice {
  int index = 0;
  std::string text;
  inference::v1::GenerateTextResponse response;
  bool is_first_piece = false;
  bool echo_logprobs = false;  // see OpenAiRequest::Choice
  bool prompt_logprobs = false;
};

// The sums of the choices' usage. A prompt counts once for all choices made of it.
struct OpenAiUsage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
};

// The whole answer.
std::string WholeBody(const OpenAiAnswer& answer, const std::vector<OpenAiChoice>& choices,
                      const OpenAiUsage& usage);
// One server-sent event with a piece of one choice.
std::string PieceEvent(const OpenAiAnswer& answer, const OpenAiChoice& choice);
// The event that ends a stream whose client wants the usage.
std::string UsageEvent(const OpenAiAnswer& answer, const OpenAiUsage& usage);

// An error in the form that the official clients understand, its HTTP status by its code.
HttpResponse ErrorResponse(const absl::Status& status);
std::string ErrorBody(int http_status, absl::string_view message, absl::string_view param,
                      absl::string_view code);
// The event that ends a stream that failed.
std::string ErrorEvent(const absl::Status& status);

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_OPENAI_RESPONSE_H_

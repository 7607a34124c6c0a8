#ifndef QUERN_SERVICES_CLI_OPENAI_STREAM_H_
#define QUERN_SERVICES_CLI_OPENAI_STREAM_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>

#include "services/cli/load.h"

namespace quern::cli {

// Reads the body of a streamed completion: server-sent events, each with a piece of the answer as
// JSON, "[DONE]" at the end (https://html.spec.whatwg.org/multipage/server-sent-events.html and
// OpenAI's "chat completion chunk" and "completion" objects). Both kinds of completion, and what
// llama-server and vLLM add to them ("reasoning_content", usage beside the last choice).
class OpenAiStream {
 public:
  // Takes the next bytes, split anywhere. How many pieces with text they completed. DATA_LOSS for
  // what is no such stream; the error that the server sent in it.
  absl::StatusOr<int> Feed(absl::string_view bytes);

  // Whether the answer came to its end: a choice has a reason to finish, or "[DONE]" came.
  bool complete() const { return complete_; }
  const LoadUsage& usage() const { return usage_; }

 private:
  // Whether the event has text.
  absl::StatusOr<bool> TakeEvent(absl::string_view data);

  std::string line_;  // the beginning of one
  std::string data_;  // of the event whose lines come
  bool complete_ = false;
  LoadUsage usage_;
};

// The error in a JSON body, {"error": {"message": ...}}, or the beginning of what else it is.
std::string OpenAiErrorMessage(absl::string_view body);

// The code that Quern's own API has where HTTP has this status (not 200).
absl::StatusCode CodeOfHttpStatus(int status);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_OPENAI_STREAM_H_

#ifndef QUERN_SERVICES_CLI_LOAD_H_
#define QUERN_SERVICES_CLI_LOAD_H_

// Streamed requests to a server under load, and what their client saw of each.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "services/cli/http.h"

namespace quern::cli {

// One of the three is set: a text, token ids, or a chat of {"role", "content"}.
struct LoadRequest {
  std::string prompt;
  std::vector<int32_t> prompt_ids;
  Json messages;
  int max_tokens = 0;
};

// Tokens as the server counts them; what it does not say is -1.
struct LoadUsage {
  int prompt_tokens = -1;
  int cached_prompt_tokens = -1;
  int output_tokens = -1;
};

// One request from the time it was due until its answer was complete. Times are in seconds.
struct LoadOutcome {
  // OK: the whole answer came. RESOURCE_EXHAUSTED: the server refused it. CANCELLED: this client
  // gave it up.
  absl::Status status;
  double first_token = 0;    // from due to the first piece of text
  double next_token = 0;     // mean between tokens; 0 for less than two
  double whole = 0;          // from due to the end
  std::vector<float> gaps;   // between one piece and the next
  LoadUsage usage;           // `output_tokens` is set whenever a piece came: counted if not said
  double window_tokens = 0;  // of the output, those that came before LoadStart::window_end
};

// When a request counts.
struct LoadStart {
  absl::Time due;         // what its client waits counts from here
  absl::Time window_end;  // tokens that come later do not count as throughput of this run
};

// Collects what comes of one request.
class LoadRecorder {
 public:
  explicit LoadRecorder(const LoadStart& start) : start_(start) {}

  // A piece of text (or of reasoning) of about `num_tokens` came now.
  void Piece(int num_tokens);
  LoadOutcome End(absl::Status status, const LoadUsage& usage);

 private:
  const LoadStart start_;
  absl::Time first_;
  absl::Time last_;
  int num_tokens_ = 0;
  int num_window_tokens_ = 0;
  LoadOutcome outcome_;
};

// Sends requests and hands over what came of each. Does all its work in HandleUntil, on the
// caller's thread: a client that measures takes as little as it can from a server beside it.
class LoadClient {
 public:
  using OnOutcome = std::function<void(LoadOutcome)>;

  virtual ~LoadClient() = default;

  // `on_outcome` is called in HandleUntil, once, and may call Start.
  virtual void Start(const LoadRequest& request, const LoadStart& start, OnOutcome on_outcome) = 0;
  // Handles what comes until that time, or until no request is open.
  virtual void HandleUntil(absl::Time time) = 0;
  // Gives up all that is open; their outcomes follow, in HandleUntil.
  virtual void CancelAll() = 0;
  virtual int num_open() const = 0;
};

struct LoadClientOptions {
  std::string model;
  // Greedy answers of max_tokens each, through the model's end of text.
  bool ignore_end_of_text = true;
};

// Quern's own API. All requests share one connection.
std::unique_ptr<LoadClient> MakeGrpcLoadClient(std::shared_ptr<grpc::Channel> channel,
                                               const LoadClientOptions& options);

// OpenAI's API, below `url` ("/v1" may end it): /v1/completions for prompts, /v1/chat/completions
// for chats, each on a connection of its own. UNAVAILABLE when the host has no address.
absl::StatusOr<std::unique_ptr<LoadClient>> MakeHttpLoadClient(const HttpUrl& url,
                                                               const LoadClientOptions& options);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_LOAD_H_

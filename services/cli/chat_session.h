#ifndef QUERN_SERVICES_CLI_CHAT_SESSION_H_
#define QUERN_SERVICES_CLI_CHAT_SESSION_H_

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "services/cli/generate.h"

namespace quern::cli {

// A conversation at a terminal: its messages, its sampling, and the commands that change them.
// For one thread.
class ChatSession {
 public:
  // `context_tokens`: of the model, prompt and output together.
  ChatSession(std::shared_ptr<grpc::Channel> channel, const GenerateOptions& options,
              int context_tokens, bool colors, Interrupt& interrupt);

  // Handles what the user typed: a command ("/..."), or a message, whose answer is printed. False
  // when the user leaves.
  bool Handle(const std::string& text);

 private:
  struct Message {
    inference::v1::Chat::Message::Role role;
    std::string content;
  };

  bool Command(absl::string_view text);
  void SetSystem(absl::string_view text);
  void Save(absl::string_view path) const;
  void SetParameter(absl::string_view text);
  void ShowParameters() const;

  void Ask(const std::string& text);
  void DescribeAnswer(const Generation& generation);
  // Forgets the oldest exchanges until `text` and an answer fit into the context.
  absl::Status MakeRoom(const std::string& text);
  absl::StatusOr<int> CountTokens(const std::string& text);
  // A line of our own among the model's text.
  void Say(absl::string_view text) const;
  void Complain(const absl::Status& status) const;

  const std::shared_ptr<grpc::Channel> channel_;
  const int context_tokens_;
  const bool colors_;
  Interrupt& interrupt_;
  GenerateOptions options_;
  std::string system_;
  std::vector<Message> messages_;
  int used_tokens_ = 0;  // of the context, by the messages
};

// `text` as a terminal may show it: control characters, which could move the cursor or worse, are
// replaced; ends of lines and tabs stay. Must not end inside a character.
std::string WithoutControls(absl::string_view text);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_CHAT_SESSION_H_

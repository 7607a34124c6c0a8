// `quern chat`.

#include <absl/strings/str_cat.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "services/cli/chat_session.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/generate.h"
#include "services/cli/line_editor.h"

namespace quern::cli {
namespace {

// The model, after a note when chats with it are plain text.
absl::StatusOr<inference::v1::Model> FindChatModel(const GenerateOptions& options,
                                                   const std::shared_ptr<grpc::Channel>& channel) {
  inference::v1::GetModelRequest request;
  request.set_name(ResourceName("models", options.model));
  grpc::ClientContext call;
  inference::v1::Model model;
  RETURN_IF_ERROR(
      CallStatus(inference::v1::ModelService::NewStub(channel)->GetModel(&call, request, &model)));
  if (model.chat_format() == "none") {
    std::cerr << "note: " << model.name()
              << " names no chat format that quern knows; messages go to it as plain text"
              << std::endl;
  }
  return model;
}

// Earlier messages, unless the file cannot be used: that is said, and the chat goes on.
void KeepHistory(const Context& context, LineEditor& editor) {
  absl::Status status = CreateDirectories(context.data_directory());
  if (status.ok()) {
    status = editor.KeepHistory(absl::StrCat(context.data_directory(), "/chat_history"));
  }
  if (!status.ok()) {
    std::cerr << "note: messages are not kept for the next time: " << std::string(status.message())
              << std::endl;
  }
}

// At a terminal.
absl::Status Talk(const GenerateOptions& options, Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto channel, context.Inference());
  ASSIGN_OR_RETURN(const inference::v1::Model model, FindChatModel(options, channel));
  ASSIGN_OR_RETURN(const auto editor, LineEditor::Create(interrupt.wake_fd()));
  KeepHistory(context, *editor);
  ChatSession session(channel, options, model.context_tokens(), context.colors(), interrupt);
  std::cout << "chat with " << options.model;
  if (model.context_tokens() > 0) {
    std::cout << ", context of " << FormatCount(model.context_tokens()) << " tokens";
  }
  std::cout << "; /help lists commands, Ctrl-D leaves" << std::endl;
  bool leaves = false;  // with another Ctrl-C
  while (!interrupt.terminated()) {
    const LineEditor::Input input = editor->Read();
    if (input.kind == LineEditor::Input::Kind::kEnd) break;
    if (input.kind == LineEditor::Input::Kind::kWoken) {
      if (leaves && input.was_empty) break;
      leaves = input.was_empty;
      if (leaves && !interrupt.terminated()) std::cout << "Ctrl-C again leaves" << std::endl;
      continue;
    }
    leaves = false;
    if (input.text.empty()) continue;
    if (const absl::Status status = editor->Remember(input.text); !status.ok()) {
      std::cerr << "note: " << std::string(status.message()) << std::endl;
    }
    if (!session.Handle(input.text)) break;
  }
  return absl::OkStatus();
}

// One message, or one for each line of standard input.
absl::Status ChatInLines(const GenerateOptions& options, Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(inference::v1::GenerateTextRequest request, MakeGenerateRequest(options));
  const auto add = [&](inference::v1::Chat::Message::Role role, const std::string& content) {
    auto* message = request.mutable_chat()->add_messages();
    message->set_role(role);
    message->set_content(content);
  };
  ASSIGN_OR_RETURN(const auto channel, context.Inference());
  RETURN_IF_ERROR(FindChatModel(options, channel).status());
  if (!options.system.empty()) add(inference::v1::Chat::Message::SYSTEM, options.system);
  std::string answer;
  if (!options.text.empty()) {
    add(inference::v1::Chat::Message::USER, options.text);
    return PrintGeneration(request, options, context, interrupt, &answer);
  }
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line.empty()) continue;
    add(inference::v1::Chat::Message::USER, line);
    RETURN_IF_ERROR(PrintGeneration(request, options, context, interrupt, &answer));
    add(inference::v1::Chat::Message::ASSISTANT, answer);
  }
  return absl::OkStatus();
}

}  // namespace

void AddChat(CLI::App& app, Command& command) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* chat = app.add_subcommand("chat", "Talk to a model in its own chat format");
  AddGenerateOptions(chat, *options);
  chat->add_option("message", options->text, "one message; unset: talk line by line");
  chat->add_option("--system", options->system, "system message");
  chat->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) -> absl::Status {
      const bool talks = options->text.empty() && isatty(STDIN_FILENO) == 1 && context.terminal() &&
                         !context.json();
      if (talks) {
        RETURN_IF_ERROR(interrupt.WatchRepeatedly());
        return Talk(*options, context, interrupt);
      }
      interrupt.WatchCallsOnly();
      return ChatInLines(*options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

// `quern chat` at a terminal.

#include <poll.h>
#include <pty.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "core/base/file.h"
#include "services/cli/chat_session.h"
#include "tests/services/cli/cli_fixture.h"

namespace quern {
namespace {

using inference::v1::Chat;
using inference::v1::GenerateTextResponse;
using testing::HasSubstr;
using testing::Not;

// A program and the terminal that it runs in.
class Terminal {
 public:
  Terminal(std::vector<std::string> arguments, std::vector<std::string> environment) {
    // Made before the fork: what follows it may allocate nothing.
    std::vector<char*> argv, envp;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    for (std::string& variable : environment) envp.push_back(variable.data());
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    winsize size{.ws_row = 24, .ws_col = 200};
    pid_ = forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ != 0) return;
    execve(argv[0], argv.data(), envp.data());
    _exit(127);
  }
  ~Terminal() {
    if (pid_ > 0 && !ended_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(fd_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void Type(const std::string& text) {
    ReleaseToGrpc(&program_runs);  // whatever the test set comes before the calls that this makes
    ASSERT_EQ(write(fd_, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  // At the next prompt: the terminal is in the hands of the line editor from there on.
  void Enter(const std::string& text) {
    ASSERT_TRUE(Shows("> "));
    Type(text);
  }
  // Waits until `text` is shown after whatever was expected before.
  testing::AssertionResult Shows(const std::string& text) {
    while (true) {
      const size_t found = shown_.find(text, seen_);
      if (found != std::string::npos) {
        seen_ = found + text.size();
        return testing::AssertionSuccess();
      }
      if (!ReadMore()) {
        return testing::AssertionFailure() << "no \"" << text << "\" in: " << shown_.substr(seen_);
      }
    }
  }
  // Its status once it has ended.
  int Wait() {
    while (ReadMore()) {
    }
    int status = -1;
    waitpid(pid_, &status, 0);
    ended_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  const std::string& shown() const { return shown_; }

 private:
  bool ReadMore() {
    pollfd watched{.fd = fd_, .events = POLLIN};
    if (poll(&watched, 1, 120'000) <= 0) return false;
    char bytes[4096];
    const ssize_t size = read(fd_, bytes, sizeof(bytes));  // fails when the program has ended
    if (size > 0) shown_.append(bytes, static_cast<size_t>(size));
    return size > 0;
  }

  pid_t pid_ = -1;
  int fd_ = -1;
  bool ended_ = false;
  std::string shown_;
  size_t seen_ = 0;
};

class ChatTest : public CliTest {
 protected:
  ChatTest() {
    services_.model.set_name("models/m");
    services_.model.set_state(inference::v1::Model::ACTIVE);
    services_.model.set_chat_format("chatml");
    services_.model.set_context_tokens(2048);
    Answer("It is Paris.");
  }
  void Answer(const std::string& text) {
    services_.pieces.resize(1);
    GenerateTextResponse& piece = services_.pieces[0];
    piece.set_text(text);
    piece.add_token_ids(1);
    piece.set_finish_reason(GenerateTextResponse::END_OF_TEXT);
    piece.mutable_usage()->set_prompt_tokens(5);
    piece.mutable_usage()->set_output_tokens(11);
    piece.mutable_usage()->mutable_time_to_first_token()->set_seconds(1);
    piece.mutable_usage()->mutable_total_duration()->set_seconds(2);
  }
  // What follows a change of the fakes' answers.
  std::unique_ptr<Terminal> Open(const std::vector<std::string>& variables = {}) {
    std::vector<std::string> arguments = Connected({"chat", "m"});
    arguments.insert(arguments.begin(), program_);
    std::vector<std::string> environment = {"TERM=xterm", "HOME=" + directory_.path(),
                                            "XDG_STATE_HOME=" + directory_.path()};
    environment.insert(environment.end(), variables.begin(), variables.end());
    for (const char* options : {"ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"}) {
      const char* value = std::getenv(options);
      if (value != nullptr) environment.push_back(absl::StrCat(options, "=", value));
    }
    ReleaseToGrpc(&program_runs);
    auto terminal = std::make_unique<Terminal>(arguments, environment);
    EXPECT_TRUE(terminal->Shows("/help lists commands"));
    return terminal;
  }
  // Once an answer is there.
  Chat asked() { return services_.generated().chat(); }
};

TEST_F(ChatTest, AnswersAndSaysWhatTheyTook) {
  const auto terminal = Open();
  terminal->Enter("What is the capital?\r");
  EXPECT_TRUE(terminal->Shows("It is Paris."));
  EXPECT_TRUE(terminal->Shows("\x1b[2m11 tokens, 10.0 tokens/s, context 16 of 2,048\x1b[0m"));
  terminal->Enter("And of Spain?\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  ASSERT_EQ(asked().messages_size(), 3);
  EXPECT_EQ(asked().messages(0).content(), "What is the capital?");
  EXPECT_EQ(asked().messages(1).content(), "It is Paris.");
  EXPECT_EQ(asked().messages(2).content(), "And of Spain?");
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, NoColorMeansNone) {
  const auto terminal = Open({"NO_COLOR=1"});
  terminal->Enter("Hi\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  terminal->Enter("/exit\r");
  EXPECT_EQ(terminal->Wait(), 0);
  EXPECT_THAT(terminal->shown(), Not(HasSubstr("\x1b[2m")));
}

TEST_F(ChatTest, CtrlCStopsTheAnswerAndNotTheChat) {
  services_.generation_stays_open = true;
  const auto terminal = Open();
  for (int round = 0; round < 2; ++round) {
    terminal->Enter("Go on\r");
    EXPECT_TRUE(terminal->Shows("It is Paris."));
    terminal->Type("\x03");
    EXPECT_TRUE(terminal->Shows("stopped"));
  }
  EXPECT_TRUE(Eventually([&] { return services_.client_left.load(); }));
  // The part that came is part of the conversation.
  EXPECT_EQ(asked().messages_size(), 3);
  EXPECT_EQ(asked().messages(1).content(), "It is Paris.");
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, CtrlCTwiceAtThePromptLeaves) {
  const auto terminal = Open();
  terminal->Enter("\x03");
  EXPECT_TRUE(terminal->Shows("Ctrl-C again leaves"));
  terminal->Enter("Hi\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  terminal->Enter("\x03");
  EXPECT_TRUE(terminal->Shows("Ctrl-C again leaves"));
  terminal->Enter("\x03");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, MessagesAreThereTheNextTimeAndForNobodyElse) {
  {
    const auto terminal = Open();
    terminal->Enter("Gr\xc3\xbc\xc3\x9f\x65, \xe2\x82\xac?\r");
    EXPECT_TRUE(terminal->Shows("11 tokens"));
    terminal->Enter("/exit\r");
    EXPECT_EQ(terminal->Wait(), 0);
  }
  struct stat info {};
  ASSERT_EQ(stat(directory_.Path("quern/chat_history").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  const auto terminal = Open();
  // Up twice: over "/exit" to the message before it; then its last character goes.
  terminal->Enter("\x1b[A\x1b[A\x7f!\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  ASSERT_EQ(asked().messages_size(), 1);
  EXPECT_EQ(asked().messages(0).content(), "Gr\xc3\xbc\xc3\x9f\x65, \xe2\x82\xac!");
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, MessagesOfSeveralLines) {
  const auto terminal = Open();
  const std::pair<std::string, std::string> cases[] = {
      {"one\\\rtwo\r", "one\ntwo"},
      {"one\x1b\rtwo\r", "one\ntwo"},
      {"\x1b[200~one\r\ttwo\x1b[201~ three\r", "one\n\ttwo three"},
      {"\x1b[200~\x01one\x1b[201~\r", "one"},
  };
  for (const auto& [typed, content] : cases) {
    terminal->Enter(typed);
    EXPECT_TRUE(terminal->Shows("11 tokens"));
    EXPECT_EQ(asked().messages().rbegin()->content(), content);
  }
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, CommandsChangeTheConversation) {
  const auto terminal = Open();
  const std::string file = directory_.Path("chat.json");
  terminal->Enter("/help\r");
  EXPECT_TRUE(terminal->Shows("/params NAME N"));
  terminal->Enter("/nonsense\r");
  EXPECT_TRUE(terminal->Shows("/nonsense is no command"));
  terminal->Enter("/params heat 3\r");
  EXPECT_TRUE(terminal->Shows("there is no \"heat\""));
  terminal->Enter("/params top-k x\r");
  EXPECT_TRUE(terminal->Shows("wanted a number"));
  terminal->Enter("/params temperature 0.5\r");
  EXPECT_TRUE(terminal->Shows("temperature 0.5 "));
  terminal->Enter("/params seed 9\r");
  EXPECT_TRUE(terminal->Shows("seed 9 "));
  terminal->Enter("/system Be brief.\r");
  EXPECT_TRUE(terminal->Shows("with this system message"));
  terminal->Enter(" /etc is what?\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  ASSERT_EQ(asked().messages_size(), 2);
  EXPECT_EQ(asked().messages(0).role(), Chat::Message::SYSTEM);
  EXPECT_EQ(asked().messages(1).content(), "/etc is what?");
  EXPECT_FLOAT_EQ(services_.generated().sampling().temperature(), 0.5F);
  EXPECT_EQ(services_.generated().sampling().seed(), 9);

  terminal->Enter("/save " + file + "\r");
  EXPECT_TRUE(terminal->Shows("messages written to"));
  terminal->Enter("/save " + file + "\r");
  EXPECT_TRUE(terminal->Shows("is there already"));
  ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(file, 1 << 20));
  ASSERT_OK_AND_ASSIGN(const Json saved, ParseJson(text, file));
  ASSERT_EQ(saved.at("messages").size(), 3U);
  EXPECT_EQ(saved.at("messages").at(2).at("role"), "assistant");

  terminal->Enter("/clear\r");
  EXPECT_TRUE(terminal->Shows("begins anew"));
  terminal->Enter("Hi\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  EXPECT_EQ(asked().messages_size(), 2);
  terminal->Enter("/exit\r");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, AFullContextForgetsTheOldest) {
  services_.model.set_context_tokens(64);
  const auto terminal = Open();
  terminal->Enter("Hi\r");
  EXPECT_TRUE(terminal->Shows("context 16 of 64"));
  terminal->Enter(std::string(40, 'x') + "\r");
  EXPECT_TRUE(terminal->Shows("the oldest 2 messages are forgotten"));
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  EXPECT_EQ(asked().messages_size(), 1);
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, AServerThatIsGoneEndsNothing) {
  const auto terminal = Open();
  terminal->Enter("Hi\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  AcquireFromGrpc(&program_runs);
  services_.failure = grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  ReleaseToGrpc(&program_runs);
  terminal->Enter("Still there?\r");
  EXPECT_TRUE(terminal->Shows("UNAVAILABLE: draining"));
  EXPECT_TRUE(terminal->Shows("the conversation is kept"));
  AcquireFromGrpc(&program_runs);
  services_.failure = grpc::Status::OK;
  ReleaseToGrpc(&program_runs);
  terminal->Enter("\x1b[A\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  ASSERT_EQ(asked().messages_size(), 3);
  EXPECT_EQ(asked().messages(2).content(), "Still there?");
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
}

TEST_F(ChatTest, WhatAModelWritesDoesNotSteerTheTerminal) {
  Answer(
      "a\x1b]0;evil\x07 b\xc2\x9b"
      "c\ttab\n\xe2\x82\xac");
  const auto terminal = Open();
  terminal->Enter("Hi\r");
  EXPECT_TRUE(terminal->Shows("11 tokens"));
  terminal->Enter("\x04");
  EXPECT_EQ(terminal->Wait(), 0);
  EXPECT_THAT(terminal->shown(), Not(HasSubstr("\x1b]0")));
  EXPECT_EQ(cli::WithoutControls("a\x1b[2J\x7f\xc2\x9b.\t\n\xe2\x82\xac"),
            "a\xef\xbf\xbd[2J\xef\xbf\xbd\xef\xbf\xbd.\t\n\xe2\x82\xac");
}

}  // namespace
}  // namespace quern

#include "services/cli/line_editor.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <fcntl.h>
#include <histedit.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cwchar>
#include <utility>

#include "core/base/file.h"

namespace quern::cli {
namespace {

constexpr int kHistoryEntries = 1000;
// Bracketed paste, as xterm and its like have it: the terminal marks what was pasted.
constexpr absl::string_view kPasteOn = "\x1b[?2004h";
constexpr absl::string_view kPasteOff = "\x1b[?2004l";
constexpr absl::string_view kPasteBegin = "\x1b[200~";
constexpr absl::string_view kPasteEnd = "\x1b[201~";
// For the rest of a sequence that the terminal sends at once.
constexpr int kSequenceMs = 50;
constexpr wchar_t kQuoteNext = L'\x16';  // Ctrl-V
constexpr wchar_t kReplacement = L'?';

void WriteToTerminal(absl::string_view text) {
  // What a terminal that is going away does not take is not missed.
  [[maybe_unused]] const ssize_t written = write(STDOUT_FILENO, text.data(), text.size());
}

class EditLineEditor final : public LineEditor {
 public:
  explicit EditLineEditor(int wake_fd) : wake_fd_(wake_fd) {}
  ~EditLineEditor() override {
    if (history_ != nullptr) history_end(history_);
    if (edit_ != nullptr) el_end(edit_);
  }

  absl::Status Init() {
    setlocale(LC_CTYPE, "");
    // Text is UTF-8 here whatever the environment says.
    if (MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
    edit_ = el_init("quern", stdin, stdout, stderr);
    history_ = history_init();
    if (edit_ == nullptr || history_ == nullptr) {
      return absl::UnavailableError("the terminal cannot be used for line editing");
    }
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryEntries);
    history(history_, &event, H_SETUNIQUE, 1);
    el_set(edit_, EL_CLIENTDATA, this);
    el_set(edit_, EL_PROMPT, &Prompt);
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_SIGNAL, 0);
    el_set(edit_, EL_HIST, history, history_);
    el_set(edit_, EL_GETCFN, &GetCharacter);
    el_set(edit_, EL_ADDFN, "quern-next-line", "Begins another line of the message", &NextLine);
    el_set(edit_, EL_BIND, "\\e\\r", "quern-next-line", nullptr);
    el_set(edit_, EL_BIND, "\\e\\n", "quern-next-line", nullptr);
    el_set(edit_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    // Home, End, Delete, and words by Ctrl with an arrow, as terminals send them.
    for (const auto& [key, function] :
         {std::pair("\\e[1~", "ed-move-to-beg"), std::pair("\\e[4~", "ed-move-to-end"),
          std::pair("\\e[3~", "ed-delete-next-char"), std::pair("\\e[1;5C", "em-next-word"),
          std::pair("\\e[1;5D", "ed-prev-word")}) {
      el_set(edit_, EL_BIND, key, function, nullptr);
    }
    // The user's own keys; no file is no error.
    el_source(edit_, nullptr);
    return absl::OkStatus();
  }

  absl::Status KeepHistory(const std::string& path) override {
    // libedit would make the file first and narrow its mode then.
    const FileDescriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (file.get() < 0 || fchmod(file.get(), 0600) != 0) return absl::ErrnoToStatus(errno, path);
    struct stat info {};
    if (fstat(file.get(), &info) != 0) return absl::ErrnoToStatus(errno, path);
    HistEvent event;
    if (info.st_size > 0 && history(history_, &event, H_LOAD, path.c_str()) < 0) {
      return absl::DataLossError(absl::StrCat(path, ": no history of line editing; delete it"));
    }
    history_path_ = path;
    return absl::OkStatus();
  }

  Input Read() override {
    Input input{.kind = Input::Kind::kText};
    woken_ = more_ = false;
    continues_ = false;
    el_resize(edit_);
    WriteToTerminal(kPasteOn);
    while (true) {
      int length = 0;
      // Else the prompt would be there before the terminal is the editor's, and a key pressed at
      // once
      // (Ctrl-D) the terminal's.
      el_set(edit_, EL_PREP_TERM, 1);
      const char* line = el_gets(edit_, &length);
      if (woken_) {
        input.was_empty = input.text.empty() && EditedIsEmpty();
        input.kind = Input::Kind::kWoken;
        break;
      }
      if (line == nullptr && !more_) {
        // Ctrl-D on the second line sends the first.
        if (input.text.empty()) input.kind = Input::Kind::kEnd;
        break;
      }
      absl::string_view text(line == nullptr ? "" : line, static_cast<size_t>(length));
      absl::ConsumeSuffix(&text, "\n");
      const bool backslash = !more_ && absl::ConsumeSuffix(&text, "\\");
      absl::StrAppend(&input.text, continues_ ? "\n" : "", text);
      if (!more_ && !backslash) break;
      more_ = false;
      continues_ = true;
    }
    WriteToTerminal(kPasteOff);
    if (input.kind != Input::Kind::kText) WriteToTerminal("\n");
    return input;
  }

  absl::Status Remember(const std::string& text) override {
    HistEvent event;
    history(history_, &event, H_ENTER, text.c_str());
    if (history_path_.empty()) return absl::OkStatus();
    if (history(history_, &event, H_SAVE, history_path_.c_str()) < 0) {
      return absl::UnavailableError(absl::StrCat(history_path_, ": history cannot be written"));
    }
    return absl::OkStatus();
  }

 private:
  static EditLineEditor& Of(EditLine* edit) {
    void* self = nullptr;
    el_get(edit, EL_CLIENTDATA, &self);
    return *static_cast<EditLineEditor*>(self);
  }
  static char* Prompt(EditLine* edit) {
    static char first[] = "> ";
    static char next[] = ". ";
    return Of(edit).continues_ ? next : first;
  }
  static unsigned char NextLine(EditLine* edit, wint_t) {
    Of(edit).more_ = true;
    return CC_NEWLINE;
  }
  static int GetCharacter(EditLine* edit, wchar_t* character) {
    return Of(edit).NextCharacter(character);
  }

  bool EditedIsEmpty() const {
    const LineInfo* line = el_line(edit_);
    return line == nullptr || line->lastchar == line->buffer;
  }

  // Waits for bytes; -1 when there are none any more or when woken.
  int Fill(int timeout_ms) {
    pollfd watched[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = wake_fd_, .events = POLLIN}};
    int found = 0;
    do {
      found = poll(watched, 2, timeout_ms);
    } while (found < 0 && errno == EINTR);
    if (found <= 0) return found;
    if (watched[1].revents != 0) {
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t taken = read(wake_fd_, &count, sizeof(count));
      woken_ = true;
      bytes_.clear();
      in_paste_ = false;
      return -1;
    }
    std::array<char, 4096> chunk;
    const ssize_t size = read(STDIN_FILENO, chunk.data(), chunk.size());
    if (size <= 0) return -1;
    bytes_.append(chunk.data(), static_cast<size_t>(size));
    return static_cast<int>(size);
  }

  // Whether `marker` comes next; it is taken then.
  bool TakeMarker(absl::string_view marker) {
    while (bytes_.size() > 1 && bytes_.size() < marker.size() && absl::StartsWith(marker, bytes_)) {
      if (Fill(kSequenceMs) <= 0) return false;
    }
    if (!absl::StartsWith(bytes_, marker)) return false;
    bytes_.erase(0, marker.size());
    return true;
  }

  // What libedit asks for: 1 and a character, 0 at the end, -1 for an error.
  int NextCharacter(wchar_t* character) {
    if (quoted_ != 0) {
      *character = std::exchange(quoted_, 0);
      return 1;
    }
    while (true) {
      if (bytes_.empty() && !woken_ && Fill(-1) <= 0 && !woken_) return 0;
      if (woken_) return -1;
      if (!in_paste_ && TakeMarker(kPasteBegin)) {
        in_paste_ = true;
        continue;
      }
      if (in_paste_ && TakeMarker(kPasteEnd)) {
        in_paste_ = false;
        continue;
      }
      if (bytes_.empty() || !Decode(character)) continue;
      if (!in_paste_ || *character >= L' ') return 1;
      if (*character == L'\n' || *character == L'\r') {
        more_ = true;
        *character = L'\n';
        return 1;
      }
      if (*character == L'\t') {
        // As text, not as the key.
        quoted_ = std::exchange(*character, kQuoteNext);
        return 1;
      }
      // Other control characters in a paste are no text and would be taken for keys.
    }
  }

  // Takes one character off the bytes; false when the rest of it did not come.
  bool Decode(wchar_t* character) {
    while (true) {
      std::mbstate_t state{};
      const size_t size = std::mbrtowc(character, bytes_.data(), bytes_.size(), &state);
      if (size == static_cast<size_t>(-2)) {
        if (Fill(kSequenceMs) > 0) continue;
        bytes_.clear();
        return false;
      }
      if (size == static_cast<size_t>(-1)) *character = kReplacement;
      bytes_.erase(0, size == static_cast<size_t>(-1) || size == 0 ? 1 : size);
      return true;
    }
  }

  const int wake_fd_;
  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
  std::string history_path_;
  std::string bytes_;   // read, not yet taken
  wchar_t quoted_ = 0;  // comes next
  bool in_paste_ = false;
  bool woken_ = false;
  bool more_ = false;       // the line being read is not the last of its message
  bool continues_ = false;  // nor is it the first
};

}  // namespace

absl::StatusOr<std::unique_ptr<LineEditor>> LineEditor::Create(int wake_fd) {
  auto editor = std::make_unique<EditLineEditor>(wake_fd);
  const absl::Status status = editor->Init();
  if (!status.ok()) return status;
  return editor;
}

EchoOff::EchoOff() {
  if (tcgetattr(STDIN_FILENO, &before_) != 0) return;
  termios changed = before_;
  changed.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  changed_ = tcsetattr(STDIN_FILENO, TCSANOW, &changed) == 0;
}

EchoOff::~EchoOff() {
  if (changed_) tcsetattr(STDIN_FILENO, TCSANOW, &before_);
}

}  // namespace quern::cli

#ifndef QUERN_CORE_TOKENIZER_CHAT_TEMPLATE_H_
#define QUERN_CORE_TOKENIZER_CHAT_TEMPLATE_H_

// What the text of a chat template says. Template code is never run: its text is searched for the
// expressions that the templates of known families are made of.

#include <absl/strings/string_view.h>

#include <string>
#include <vector>

#include "core/tokenizer/chat.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {

// How a template writes a conversation. Texts of its own may hold markers (<|im_end|>, </s>), which
// become special tokens where the tokenizer has them as such.
struct ChatStyle {
  ChatFormat format = ChatFormat::kNone;
  // Markers without which the conversation cannot be written.
  std::vector<std::string> needed;

  bool bos = false;         // the conversation begins with BOS
  bool alternates = false;  // user and assistant must take turns, the user first
  bool trims = false;       // contents lose the white space around them
  bool trims_assistant = false;

  enum class System {
    kTurn,       // a turn of its own, wherever it stands
    kFirstUser,  // only as the first message; written in the first message of the user
    kLastUser,   // only as the first message; written in the last message
    kRefused,
  };
  System system = System::kTurn;
  std::string default_system;         // of conversations that begin without one; "": none
  std::string system_preamble;        // begins the first system turn, which is always there then
  bool skips_empty_system = false;    // no turn for an empty system message
  bool trims_folded_system = false;   // trimmed together with the user's text behind it
  std::string fold_open, fold_close;  // around the system's text in the user's

  enum class Thinking {
    kKept,
    kDropped,  // all up to the last </think> of an assistant's message, and newlines behind it
    // The same, but for messages behind the last one of the user that asks (which is not all
    // <tool_response>).
    kDroppedBeforeQuestion,
  };
  Thinking thinking = Thinking::kKept;

  // Around the contents of each role, and before the answer that is wanted.
  std::string system_open, system_close;
  std::string user_open, user_close;
  std::string assistant_open, assistant_close;
  std::string answer_open;
};

// The style of `chat_template`; kNone when it is of no known family. `tokenizer` decides on the
// end-of-text marker of families that have several.
ChatStyle ReadChatTemplate(absl::string_view chat_template, const Tokenizer& tokenizer);

// The id of a token when it is a special one, or -1.
int32_t SpecialId(const Tokenizer& tokenizer, absl::string_view token);

// The template's text in the form in which expressions are looked for: in {{ }} and {% %}, white
// space outside of texts is gone, texts are in single quotes, with newlines as such and without a
// '+' between two of them; message.content is message['content'] and |trim is .strip(). Comments
// and the dashes of white space control are gone.
std::string CompactTemplate(absl::string_view chat_template);

}  // namespace quern

#endif  // QUERN_CORE_TOKENIZER_CHAT_TEMPLATE_H_

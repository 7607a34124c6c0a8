#ifndef QUERN_SERVICES_PROGRAM_COMMAND_LINE_H_
#define QUERN_SERVICES_PROGRAM_COMMAND_LINE_H_

// The command line of every program with Abseil flags, quern-quantizer included, which must not
// link gRPC.

#include <absl/strings/string_view.h>

namespace quern {

// Exit status of a process whose settings are refused (EX_CONFIG of sysexits.h).
inline constexpr int kExitConfig = 78;

// Parses the flags, also in their documented spelling (--model-root for FLAGS_model_root), and
// names the program in the log. Exits with 0 on --version, with kExitConfig on an argument
// that is no flag, and as Abseil does, with 1, on --help, an unknown flag or a malformed value.
void ParseCommandLine(absl::string_view program, absl::string_view usage, int argc, char** argv);

}  // namespace quern

#endif  // QUERN_SERVICES_PROGRAM_COMMAND_LINE_H_

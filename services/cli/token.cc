// `quern token`: tokens for --auth-tokens and --token-file.

#include <absl/strings/str_cat.h>
#include <absl/time/clock.h>
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/common/auth_tokens.h"

namespace quern::cli {
namespace {

struct TokenOptions {
  std::string principal;
  std::vector<std::string> roles;
  int days = 0;
  std::string out;
};

// Never over a file that is there: it may hold a token in use.
absl::Status WriteNewTokenFile(const std::string& path, const std::string& token) {
  const FileDescriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.get() < 0) return absl::ErrnoToStatus(errno, path);
  const std::string line = absl::StrCat(token, "\n");
  if (write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    return absl::ErrnoToStatus(errno, path);
  }
  return absl::OkStatus();
}

absl::Status CreateToken(const TokenOptions& options, const Context& context) {
  Principal principal{options.principal, {}};
  if (!IsPrincipalName(principal.name)) {
    return absl::InvalidArgumentError(
        "--principal: wanted 1 to 63 letters, digits, '.', '_', '@' and '-'");
  }
  for (const std::string& name : options.roles) {
    const absl::StatusOr<Role> role = ParseRole(name);
    if (!role.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--role: '", name, "': ", role.status().message()));
    }
    principal.roles.Add({*role});
  }
  const absl::Time expires =
      options.days == 0 ? absl::InfiniteFuture() : absl::Now() + absl::Hours(24 * options.days);
  ASSIGN_OR_RETURN(const std::string token, NewAuthToken());
  const std::string line = AuthTokenLine(principal, token, expires);
  if (!options.out.empty()) RETURN_IF_ERROR(WriteNewTokenFile(options.out, token));
  if (context.json()) {
    Json json = {{"auth_tokens_line", line}};
    if (options.out.empty()) json["token"] = token;
    std::cout << json.dump() << std::endl;
    return absl::OkStatus();
  }
  std::cerr
      << (options.out.empty()
              ? "The token, which nothing keeps, and the line for the services' --auth-tokens:\n"
              : "The line for the services' --auth-tokens:\n");
  if (options.out.empty()) std::cout << token << "\n";
  std::cout << line << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddToken(CLI::App& app, Command& command) {
  auto options = std::make_shared<TokenOptions>();
  CLI::App* token = app.add_subcommand("token", "Tokens that clients show to services");
  token->require_subcommand(1);
  token->fallthrough();
  CLI::App* create =
      token->add_subcommand("create", "Make a token, and the line by which services know it");
  create->add_option("--principal", options->principal, "who will show it")->required();
  create
      ->add_option("--role", options->roles,
                   "reader, submitter, worker or admin; may be given several times")
      ->required();
  create->add_option("--days", options->days, "days until it expires; 0: never")
      ->check(CLI::Range(0, 3650))
      ->capture_default_str();
  create->add_option("--out", options->out,
                     "new file for the token, mode 0600, instead of standard output");
  create->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return CreateToken(*options, context); };
  });
}

}  // namespace quern::cli

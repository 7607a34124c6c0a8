#ifndef QUERN_SERVICES_COMMON_AUTH_TOKENS_H_
#define QUERN_SERVICES_COMMON_AUTH_TOKENS_H_

// Bearer tokens: what a server keeps of them, and where new ones come from.
//
// A token is 256 random bits, so its plain SHA-256 gives nothing away: there is nothing to guess
// that a slow hash (for passwords) would have to make dear, and each call costs one fast hash.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "services/common/policy.h"

namespace quern {

// The file behind --auth-tokens, one token a line:
//
//   PRINCIPAL ROLE[,ROLE...] sha256:HEX [expires=TIME]
//
// with TIME as in RFC 3339; empty lines and those that begin with '#' say nothing. A principal may
// have several lines, so that a new token works before the old one is taken out. Immutable.
class AuthTokens {
 public:
  // INVALID_ARGUMENT naming `where` and the line. Messages never quote what might be a token.
  static absl::StatusOr<AuthTokens> Parse(absl::string_view text, absl::string_view where);

  // Whose `token` is; nothing for one that is not known or has expired. Takes the same time
  // whichever of the tokens it is, or nearly is.
  std::optional<Principal> Find(absl::string_view token, absl::Time now) const;

  size_t size() const { return entries_.size(); }

 private:
  using Hash = std::array<uint8_t, 32>;
  struct Entry {
    Principal principal;
    Hash hash;
    absl::Time expires = absl::InfiniteFuture();
  };
  static absl::StatusOr<Entry> ParseLine(absl::string_view line);

  std::vector<Entry> entries_;
};

// "quern_" and 256 random bits in base64url.
absl::StatusOr<std::string> NewAuthToken();

// The line of the file for `token`. `expires`: InfiniteFuture for never.
std::string AuthTokenLine(const Principal& principal, absl::string_view token, absl::Time expires);

// The token in a file of one line; INVALID_ARGUMENT when it holds anything else,
// FAILED_PRECONDITION when others may read it.
absl::StatusOr<std::string> ReadTokenFile(const std::string& path);

// FAILED_PRECONDITION when anybody but the owner and the group may read `path`, or anybody but the
// owner may write it.
absl::Status CheckSecretFile(const std::string& path);
// The same for what holds no secret: anybody may read it.
absl::Status CheckTrustedFile(const std::string& path);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_AUTH_TOKENS_H_

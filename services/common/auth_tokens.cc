#include "services/common/auth_tokens.h"

#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "core/base/file.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

constexpr size_t kMaxTokens = 1024;
constexpr size_t kMaxTokenBytes = 256;
constexpr size_t kRandomBytes = 32;

std::array<uint8_t, 32> HashOf(absl::string_view token) {
  const std::string bytes = absl::HexStringToBytes(Sha256Hex(token));
  std::array<uint8_t, 32> hash;
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

absl::Status CheckMode(const std::string& path, mode_t forbidden, absl::string_view what,
                       absl::string_view wanted) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, path);
  if ((info.st_mode & forbidden) == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("%s: its mode is %04o, so that others may %s it; chmod %s it", path,
                      info.st_mode & 07777, what, wanted));
}

}  // namespace

absl::StatusOr<AuthTokens::Entry> AuthTokens::ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> fields =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (fields.size() < 3 || fields.size() > 4) {
    return absl::InvalidArgumentError(
        absl::StrCat("wanted PRINCIPAL ROLE[,ROLE...] sha256:HEX [expires=TIME], found ",
                     fields.size(), " fields; `quern token create` prints such a line"));
  }
  Entry entry;
  if (!IsPrincipalName(fields[0])) {
    return absl::InvalidArgumentError(
        "the principal must be 1 to 63 letters, digits, '.', '_', '@' and '-'");
  }
  entry.principal.name = std::string(fields[0]);
  for (absl::string_view name : absl::StrSplit(fields[1], ',')) {
    ASSIGN_OR_RETURN(const Role role, ParseRole(name));
    entry.principal.roles.Add({role});
  }
  absl::string_view hex = fields[2];
  if (!absl::ConsumePrefix(&hex, "sha256:") || !Digest::Parse(hex).ok()) {
    return absl::InvalidArgumentError(
        "the third field must be sha256: and 64 lower-case hex digits, the hash of the token and "
        "not the token");
  }
  const std::string bytes = absl::HexStringToBytes(hex);
  std::copy(bytes.begin(), bytes.end(), entry.hash.begin());
  if (fields.size() == 4) {
    absl::string_view time = fields[3];
    std::string unused;
    if (!absl::ConsumePrefix(&time, "expires=") ||
        !absl::ParseTime(absl::RFC3339_full, time, &entry.expires, &unused)) {
      return absl::InvalidArgumentError(
          "the fourth field must be expires= and a time like 2030-01-31T00:00:00Z");
    }
  }
  return entry;
}

absl::StatusOr<AuthTokens> AuthTokens::Parse(absl::string_view text, absl::string_view where) {
  AuthTokens tokens;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    absl::StatusOr<Entry> entry = ParseLine(line);
    if (entry.ok() && tokens.entries_.size() == kMaxTokens) {
      entry = absl::InvalidArgumentError(absl::StrCat("more than ", kMaxTokens, " tokens"));
    }
    for (const Entry& other : tokens.entries_) {
      // Which principal it is would depend on the order of lines.
      if (entry.ok() && other.hash == entry->hash) {
        entry = absl::InvalidArgumentError("the hash is on another line too");
      }
    }
    if (!entry.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ":", number, ": ", entry.status().message()));
    }
    tokens.entries_.push_back(*std::move(entry));
  }
  return tokens;
}

std::optional<Principal> AuthTokens::Find(absl::string_view token, absl::Time now) const {
  if (token.empty() || token.size() > kMaxTokenBytes) return std::nullopt;
  const Hash hash = HashOf(token);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.hash.data(), hash.data(), hash.size()) == 0) found = &entry;
  }
  if (found == nullptr || now >= found->expires) return std::nullopt;
  return found->principal;
}

absl::StatusOr<std::string> NewAuthToken() {
  std::string random(kRandomBytes, '\0');
  if (RAND_bytes(reinterpret_cast<uint8_t*>(random.data()), static_cast<int>(random.size())) != 1) {
    return absl::InternalError("the system gives no random bytes");
  }
  return absl::StrCat("quern_", absl::WebSafeBase64Escape(random));
}

std::string AuthTokenLine(const Principal& principal, absl::string_view token, absl::Time expires) {
  std::string line =
      absl::StrCat(principal.name, " ", principal.roles.ToString(), " sha256:", Sha256Hex(token));
  if (expires != absl::InfiniteFuture()) {
    absl::StrAppend(
        &line, " expires=", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", expires, absl::UTCTimeZone()));
  }
  return line;
}

absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  RETURN_IF_ERROR(CheckSecretFile(path));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, 4096));
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  bool good = !token.empty() && token.size() <= kMaxTokenBytes;
  for (char c : token) good = good && absl::ascii_isgraph(static_cast<unsigned char>(c));
  if (!good) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": wanted a token on one line, at most ",
                                                   kMaxTokenBytes, " visible characters"));
  }
  return std::string(token);
}

absl::Status CheckSecretFile(const std::string& path) {
  return CheckMode(path, S_IRWXO | S_IWGRP, "read or change", "600");
}

absl::Status CheckTrustedFile(const std::string& path) {
  return CheckMode(path, S_IWOTH | S_IWGRP, "change", "644");
}

}  // namespace quern

#ifndef QUERN_SERVICES_COMMON_POLICY_H_
#define QUERN_SERVICES_COMMON_POLICY_H_

// Who may call what: one table for every RPC and every HTTP path of every service.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <initializer_list>
#include <string>

namespace quern {

enum class Role : uint8_t {
  kReader = 1 << 0,     // asks models for text, sees models and artifacts
  kSubmitter = 1 << 1,  // the same, and runs jobs
  kWorker = 1 << 2,     // leases jobs, reads artifacts, publishes what comes out; nothing else
  kAdmin = 1 << 3,      // everything but a worker's part
};

// A set of roles.
class Roles {
 public:
  constexpr Roles() = default;
  constexpr Roles(std::initializer_list<Role> roles) {
    for (Role role : roles) bits_ |= static_cast<uint8_t>(role);
  }
  constexpr void Add(Roles other) { bits_ |= other.bits_; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool Intersects(Roles other) const { return (bits_ & other.bits_) != 0; }
  friend constexpr bool operator==(Roles a, Roles b) { return a.bits_ == b.bits_; }

  // "reader,admin", in the order of the enum; "none".
  std::string ToString() const;

 private:
  uint8_t bits_ = 0;
};

// One role by its name: "reader". INVALID_ARGUMENT naming those there are, but not `name`, which
// may be anything.
absl::StatusOr<Role> ParseRole(absl::string_view name);

// Who asks.
struct Principal {
  std::string name;  // empty: nobody in particular
  Roles roles;
};

// 1 to 63 of [A-Za-z0-9._@-], as a principal's name must be.
bool IsPrincipalName(absl::string_view name);

struct PolicyRow {
  // "/package.Service/Method" of an RPC. Of HTTP the path, whatever the method: what a path does
  // not take is 405 to those who may come there. One that ends with '/' stands for all below it.
  absl::string_view target;
  Roles roles;  // any of them will do; empty: open to all, without a credential
};

// Whether `path` is one of `patterns`, each as the target of an HTTP row.
bool PathIsOneOf(absl::Span<const absl::string_view> patterns, absl::string_view path);

absl::Span<const PolicyRow> RpcPolicy();
absl::Span<const PolicyRow> HttpPolicy();

// The row for a call; null where there is none: then nobody may.
const PolicyRow* FindRpcPolicy(absl::string_view full_method);
const PolicyRow* FindHttpPolicy(absl::string_view path);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_POLICY_H_

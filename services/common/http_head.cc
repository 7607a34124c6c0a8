#include "services/common/http_head.h"

#include <absl/status/statusor.h>
#include <absl/strings/str_cat.h>

#include <iterator>
#include <utility>

namespace quern {
namespace {

constexpr int kMaxHeaderFields = 64;
constexpr size_t kMaxTargetBytes = 8 << 10;

absl::string_view TextOf(boost::beast::string_view text) { return {text.data(), text.size()}; }

}  // namespace

absl::string_view PathOf(const HttpRequestHead& head) {
  const absl::string_view target = TextOf(head.target());
  return target.substr(0, target.find('?'));
}

std::variant<Principal, HttpHeadRefusal> CheckHttpHead(
    const HttpRequestHead& head, const Security* security,
    const std::optional<Principal>& certificate) {
  if (std::distance(head.begin(), head.end()) > kMaxHeaderFields) {
    return HttpHeadRefusal{431, absl::StrCat("more than ", kMaxHeaderFields, " header fields")};
  }
  if (head.target().size() > kMaxTargetBytes) {
    return HttpHeadRefusal{414, absl::StrCat("the target is longer than ", kMaxTargetBytes)};
  }
  if (security == nullptr) return Principal();
  // Of several, each reader might take another one; joined, as HTTP does, they are no token.
  std::string authorization;
  const auto [begin, end] = head.equal_range(boost::beast::http::field::authorization);
  for (auto it = begin; it != end; ++it) {
    absl::StrAppend(&authorization, it == begin ? "" : ", ", TextOf(it->value()));
  }
  absl::StatusOr<Principal> principal =
      security->Authorize(FindHttpPolicy(PathOf(head)), authorization, certificate);
  if (principal.ok()) return *std::move(principal);
  return HttpHeadRefusal{absl::IsPermissionDenied(principal.status()) ? 403 : 401,
                         std::string(principal.status().message())};
}

}  // namespace quern

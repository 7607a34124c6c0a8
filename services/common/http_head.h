#ifndef QUERN_SERVICES_COMMON_HTTP_HEAD_H_
#define QUERN_SERVICES_COMMON_HTTP_HEAD_H_

#include <absl/strings/string_view.h>

#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/message.hpp>
#include <optional>
#include <string>
#include <variant>

#include "services/common/policy.h"
#include "services/common/security.h"

namespace quern {

using HttpRequestHead = boost::beast::http::header</*isRequest=*/true, boost::beast::http::fields>;

struct HttpHeadRefusal {
  int status = 0;
  std::string message;
};

// The path of a request's target, without the query.
absl::string_view PathOf(const HttpRequestHead& head);

// Whose request it is, or why it is refused before its body is read: 431 for more than 64 header
// fields, 414 for a target beyond 8 KiB, 401 and 403 as `security` judges (null: open to all).
std::variant<Principal, HttpHeadRefusal> CheckHttpHead(const HttpRequestHead& head,
                                                       const Security* security,
                                                       const std::optional<Principal>& certificate);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_HTTP_HEAD_H_

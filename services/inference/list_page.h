#ifndef QUERN_SERVICES_INFERENCE_LIST_PAGE_H_
#define QUERN_SERVICES_INFERENCE_LIST_PAGE_H_

#include <absl/status/status.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <iterator>

#include "core/base/status_macros.h"
#include "services/inference/request_check.h"

namespace quern {

// The page of `elements`, a map by id, that a List request asks for (AIP-158): calls `add` for each
// of its elements and sets the response's next_page_token, the id that the page ends with.
// INVALID_ARGUMENT.
template <typename Request, typename Map, typename Response, typename Add>
absl::Status FillPage(const Request& request, const Map& elements, Response& response, Add add) {
  constexpr int kDefaultPageSize = 50;
  constexpr int kMaxPageSize = 1000;
  if (request.page_size() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size must be 0 or more, got ", request.page_size()));
  }
  if (!request.page_token().empty()) {
    RETURN_IF_ERROR(CheckModelId(request.page_token(), "page_token"));
  }
  const int wanted = request.page_size() == 0 ? kDefaultPageSize : request.page_size();
  int room = std::min(wanted, kMaxPageSize);
  for (auto it = elements.upper_bound(request.page_token()); it != elements.end(); ++it) {
    if (room-- == 0) {
      response.set_next_page_token(std::prev(it)->first);
      break;
    }
    add(*it);
  }
  return absl::OkStatus();
}

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_LIST_PAGE_H_

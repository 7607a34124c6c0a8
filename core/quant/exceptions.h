#ifndef QUERN_CORE_QUANT_EXCEPTIONS_H_
#define QUERN_CORE_QUANT_EXCEPTIONS_H_

// Where LibTorch's exceptions stop.

#include <absl/status/status.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <new>
#include <string>

#include "core/quant/torch_headers.h"

namespace quern {

// What `function`, which returns a StatusOr, returns; RESOURCE_EXHAUSTED or INTERNAL for what it
// throws.
template <typename Function>
auto WithoutExceptions(Function function) -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory while quantizing");
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    // LibTorch has no error type for the CPU's allocator.
    if (absl::StrContains(message, "can't allocate memory") ||
        absl::StrContains(message, "out of memory")) {
      return absl::ResourceExhaustedError(absl::StrCat("while quantizing: ", message));
    }
    return absl::InternalError(absl::StrCat("while quantizing: ", message));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("while quantizing: ", error.what()));
  }
}

}  // namespace quern

#endif  // QUERN_CORE_QUANT_EXCEPTIONS_H_

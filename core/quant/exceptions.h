#ifndef QUERN_CORE_QUANT_EXCEPTIONS_H_
#define QUERN_CORE_QUANT_EXCEPTIONS_H_

// Where exceptions stop: LibTorch's, and those of our own code that tensors are asked of and that
// cannot return a status.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <exception>
#include <new>
#include <string>
#include <utility>

#include "core/quant/torch_headers.h"

namespace quern {

// A status on its way to WithoutExceptions.
class StatusError : public std::exception {
 public:
  explicit StatusError(absl::Status status) : status_(std::move(status)) {}
  const char* what() const noexcept override { return "a status, to be caught as one"; }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

inline void OkOrThrow(const absl::Status& status) {
  if (!status.ok()) throw StatusError(status);
}

template <typename T>
T ValueOrThrow(absl::StatusOr<T> value) {
  OkOrThrow(value.status());
  return *std::move(value);
}

// What `function`, which returns a StatusOr, returns; for what it throws the status inside, or
// RESOURCE_EXHAUSTED or INTERNAL.
template <typename Function>
auto WithoutExceptions(Function function) -> decltype(function()) {
  try {
    return function();
  } catch (const StatusError& error) {
    return error.status();
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

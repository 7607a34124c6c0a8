#ifndef QUERN_CORE_BASE_STATUS_MACROS_H_
#define QUERN_CORE_BASE_STATUS_MACROS_H_

// RETURN_IF_ERROR and ASSIGN_OR_RETURN with Abseil's later names and meaning; to be replaced by
// absl/status/status_macros.h when the packaged Abseil has it.

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <utility>

// Evaluates `expression` (an absl::Status) once and returns it from the function unless it is OK.
#define RETURN_IF_ERROR(expression)                                     \
  do {                                                                  \
    if (absl::Status quern_status = (expression); !quern_status.ok()) { \
      return quern_status;                                              \
    }                                                                   \
  } while (false)

#define QUERN_STATUS_CONCAT_INNER(a, b) a##b
#define QUERN_STATUS_CONCAT(a, b) QUERN_STATUS_CONCAT_INNER(a, b)

// ASSIGN_OR_RETURN(auto value, FunctionReturningStatusOr()): assigns the value, or returns the
// status from the enclosing function.
#define ASSIGN_OR_RETURN(lhs, expression) \
  QUERN_ASSIGN_OR_RETURN(QUERN_STATUS_CONCAT(quern_statusor_, __LINE__), lhs, expression)
#define QUERN_ASSIGN_OR_RETURN(statusor, lhs, expression)  \
  auto statusor = (expression);                            \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = std::move(statusor).value()

#endif  // QUERN_CORE_BASE_STATUS_MACROS_H_

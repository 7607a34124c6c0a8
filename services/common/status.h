#ifndef QUERN_SERVICES_COMMON_STATUS_H_
#define QUERN_SERVICES_COMMON_STATUS_H_

// absl::Status inside, grpc::Status at the edge: the codes are numbered alike.

#include <absl/status/status.h>
#include <grpcpp/support/status.h>

namespace quern {

#define QUERN_SAME_CODE(absl_code, grpc_code)                    \
  static_assert(static_cast<int>(absl::StatusCode::absl_code) == \
                static_cast<int>(grpc::StatusCode::grpc_code))
QUERN_SAME_CODE(kOk, OK);
QUERN_SAME_CODE(kCancelled, CANCELLED);
QUERN_SAME_CODE(kUnknown, UNKNOWN);
QUERN_SAME_CODE(kInvalidArgument, INVALID_ARGUMENT);
QUERN_SAME_CODE(kDeadlineExceeded, DEADLINE_EXCEEDED);
QUERN_SAME_CODE(kNotFound, NOT_FOUND);
QUERN_SAME_CODE(kAlreadyExists, ALREADY_EXISTS);
QUERN_SAME_CODE(kPermissionDenied, PERMISSION_DENIED);
QUERN_SAME_CODE(kResourceExhausted, RESOURCE_EXHAUSTED);
QUERN_SAME_CODE(kFailedPrecondition, FAILED_PRECONDITION);
QUERN_SAME_CODE(kAborted, ABORTED);
QUERN_SAME_CODE(kOutOfRange, OUT_OF_RANGE);
QUERN_SAME_CODE(kUnimplemented, UNIMPLEMENTED);
QUERN_SAME_CODE(kInternal, INTERNAL);
QUERN_SAME_CODE(kUnavailable, UNAVAILABLE);
QUERN_SAME_CODE(kDataLoss, DATA_LOSS);
QUERN_SAME_CODE(kUnauthenticated, UNAUTHENTICATED);
#undef QUERN_SAME_CODE

// The status's retry delay (core/base/retry_delay.h) goes along as google.rpc.RetryInfo in the
// details, and comes back.
grpc::Status ToGrpcStatus(const absl::Status& status);
absl::Status FromGrpcStatus(const grpc::Status& status);

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_STATUS_H_

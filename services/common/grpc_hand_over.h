#ifndef QUERN_SERVICES_COMMON_GRPC_HAND_OVER_H_
#define QUERN_SERVICES_COMMON_GRPC_HAND_OVER_H_

// gRPC promises an order between what a program does before it hands an object over (a server's
// start, a reactor that a method returns, an interceptor) and the calls on it that follow on gRPC's
// threads. It keeps that promise by locks inside its library, which ThreadSanitizer does not see.
// These two say it; in other builds they are nothing.

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace quern {

// What this thread did so far comes before whatever follows AcquireFromGrpc(object).
inline void ReleaseToGrpc([[maybe_unused]] const void* object) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(const_cast<void*>(object));
#endif
}

inline void AcquireFromGrpc([[maybe_unused]] const void* object) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(const_cast<void*>(object));
#endif
}

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_GRPC_HAND_OVER_H_

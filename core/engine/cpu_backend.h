#ifndef QUERN_CORE_ENGINE_CPU_BACKEND_H_
#define QUERN_CORE_ENGINE_CPU_BACKEND_H_

#include <memory>

#include "core/base/thread_pool.h"
#include "core/engine/backend.h"
#include "kernels/kernels.h"

namespace quern {

// Models on this CPU's cores. `pool` outlives the backend and is used in Step alone.
std::unique_ptr<Backend> MakeCpuBackend(const kernels::KernelTable& kernels, ThreadPool* pool);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_CPU_BACKEND_H_

#ifndef QUERN_CORE_ENGINE_CPU_BACKEND_H_
#define QUERN_CORE_ENGINE_CPU_BACKEND_H_

#include <functional>
#include <memory>

#include "core/base/thread_pool.h"
#include "core/engine/backend.h"
#include "kernels/kernels.h"

namespace quern {

// Models on this CPU's cores. `pool` outlives the backend and is used in Step alone. `on_block` is
// called in Step after each block of a model: the step is getting on.
std::unique_ptr<Backend> MakeCpuBackend(const kernels::KernelTable& kernels, ThreadPool* pool,
                                        std::function<void()> on_block);

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_CPU_BACKEND_H_

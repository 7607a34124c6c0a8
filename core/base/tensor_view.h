#ifndef QUERN_CORE_BASE_TENSOR_VIEW_H_
#define QUERN_CORE_BASE_TENSOR_VIEW_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/dtype.h"

namespace quern {

// A look at a row-major tensor that somebody else owns. `data` need not be aligned to the element
// size: files put tensors at any byte.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t size_bytes = 0;

  int64_t num_elements() const {
    int64_t product = 1;
    for (int64_t dim : shape) product *= dim;
    return product;
  }
};

}  // namespace quern

#endif  // QUERN_CORE_BASE_TENSOR_VIEW_H_

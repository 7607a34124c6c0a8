#ifndef QUERN_CORE_QUANT_ELEMENTS_INL_H_
#define QUERN_CORE_QUANT_ELEMENTS_INL_H_

#include "core/quant/bfloat16.h"
#include "core/quant/torch_headers.h"

namespace quern {

// Calls body(pointer...) with the elements of contiguous tensors of one type: floats, or bfloat16
// as Bfloat16Bits.
template <typename Body, typename... Tensors>
void WithElements(const Body& body, const at::Tensor& first, const Tensors&... rest) {
  if (first.scalar_type() == at::kBFloat16) {
    const auto bits = [](const at::Tensor& tensor) {
      return reinterpret_cast<Bfloat16Bits*>(tensor.data_ptr<at::BFloat16>());
    };
    body(bits(first), bits(rest)...);
  } else {
    body(first.data_ptr<float>(), rest.template data_ptr<float>()...);
  }
}

}  // namespace quern

#endif  // QUERN_CORE_QUANT_ELEMENTS_INL_H_

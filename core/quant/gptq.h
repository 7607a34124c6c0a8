#ifndef QUERN_CORE_QUANT_GPTQ_H_
#define QUERN_CORE_QUANT_GPTQ_H_

// Codes that make up for each other's errors, found from the second moments of a matrix's inputs
// and without training: GPTQ (arXiv 2210.17323), then coordinate descent over codes (QuantEase,
// arXiv 2309.01885) and scales. Both go over blocks of columns, so that what a block does to the
// columns outside is a matrix product.

#include <absl/status/statusor.h>

#include "core/artifact/packed_model.h"
#include "core/quant/fake_quantizer.h"
#include "core/quant/torch_headers.h"

namespace quern {

// Codes and grid for `weight`, float, which becomes the value that each code is rounded from (at
// most 0.49 steps beyond the outermost code). second_moments: [cols, cols], sum of x x^T over
// inputs x; 0.3 % of its mean diagonal is added to the diagonal (more where that does not make it
// positive definite). On the CPU, whatever the tensors' device. ABORTED when the moments are not
// finite.
absl::StatusOr<QuantParameters> GptqQuantParameters(at::Tensor& weight,
                                                    const at::Tensor& second_moments,
                                                    const QuantFormat& format);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_GPTQ_H_

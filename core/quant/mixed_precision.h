#ifndef QUERN_CORE_QUANT_MIXED_PRECISION_H_
#define QUERN_CORE_QUANT_MIXED_PRECISION_H_

// Bits for each matrix of the blocks under a budget, by what rounding it does to the model's
// output.
//
// A matrix's sensitivity at some bits is the second-order estimate of KL(source || source with that
// matrix rounded): half the mean over tokens of (g . dW x)^2, where dW is the error of rounding, x
// the matrix's input and g the gradient, by its output, of the loss at tokens drawn from the
// source's own distribution, whose outer products are the Fisher information in the mean. Errors of
// several matrices and tokens are taken to be independent; that holds least for the values, which
// attention adds up over tokens.

#include <absl/status/statusor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/checkpoint/checkpoint.h"
#include "core/quant/torch_headers.h"

namespace quern {

struct MatrixSensitivity {
  std::string name;
  int64_t num_weights = 0;
  std::map<int, double> loss;  // by bits
};

// Sensitivities of all block matrices at each of `bits`, over the first tokens of some of
// `calibration`. In memory are the states between all blocks, and one block with its errors at each
// of `bits`. Products in `compute_dtype`. CANCELLED, DATA_LOSS as LoadBlock.
absl::StatusOr<std::vector<MatrixSensitivity>> MeasureSensitivities(
    const Checkpoint& checkpoint, const QuantFormat& format, const std::vector<int>& bits,
    const std::vector<std::vector<int32_t>>& calibration, at::ScalarType compute_dtype,
    at::Device device, const std::function<bool()>& cancelled);

// QuantFormat::matrix_bits with which the sum of losses is small and the codes have at most
// `target_bits` bits in the mean; each matrix has at least `least_bits`, which every one has a loss
// for. Steps along each matrix's convex hull of bits and loss, the one with the most gain for its
// bits first.
std::map<std::string, int> ChooseMatrixBits(const std::vector<MatrixSensitivity>& sensitivities,
                                            int least_bits, double target_bits);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_MIXED_PRECISION_H_

#ifndef QUERN_CORE_QUANT_FAKE_QUANTIZER_H_
#define QUERN_CORE_QUANT_FAKE_QUANTIZER_H_

// Quantization as differentiable operations on LibTorch tensors. A matrix is [rows, cols] =
// [out_features, in_features]; what its groups share is [rows, num_groups].

#include <absl/status/statusor.h>

#include <algorithm>

#include "core/artifact/packed_model.h"
#include "core/quant/group_loops.h"
#include "core/quant/torch_headers.h"

namespace quern {

// A matrix's scales and zero points as training holds them: scales free, zero points real numbers
// that are rounded in use (the constant 2^(bits-1) when symmetric).
struct QuantParameters {
  GroupShape shape;
  bool symmetric = false;
  at::Tensor scale;
  at::Tensor zero_point;
  // Whether scales are used as they will be stored (RoundScale); else clamped to [1e-4, 1e4] (in
  // magnitude, when symmetric), the gradient passed straight through, as EfficientQAT does.
  bool round_scale = true;
};

// Calls body(row_begin, row_end) for the rows of a matrix, in parallel where that pays.
template <typename Body>
void ParallelRows(const GroupShape& shape, const Body& body) {
  constexpr int64_t kTaskWeights = 16384;
  at::parallel_for(0, shape.rows,
                   std::max<int64_t>(1, kTaskWeights / std::max<int64_t>(1, shape.cols)), body);
}

// Parameters for `weight` whose scales and zero points are not set yet, on the CPU.
QuantParameters EmptyParameters(const at::Tensor& weight, const QuantFormat& format);

// The grid that SearchGridRows finds for `weight`, float. importance: [cols], the mean square of
// each input.
QuantParameters SearchQuantParameters(const at::Tensor& weight, const at::Tensor& importance,
                                      const QuantFormat& format);

// The grid that MinMaxGridRows finds for `weight`, float.
QuantParameters MinMaxQuantParameters(const at::Tensor& weight, const QuantFormat& format);

// The scale as it will be stored, a half float that is not zero; its gradient passes straight
// through. Used in every forward pass, so that what is trained is what is packed.
at::Tensor RoundScale(const at::Tensor& scale);

// The scale as the forward pass uses it.
at::Tensor UsedScale(const QuantParameters& parameters);

// clamp(round(zero_point), 0, max_code) with the gradient passed straight through.
at::Tensor RoundZeroPoint(const at::Tensor& zero_point, int max_code);

// FakeQuantizeRows with FakeQuantizeRowsBackward as its gradient, for float or double.
// scale: not zero; zero_point: whole, in [0, max_code].
at::Tensor FakeQuantize(const at::Tensor& weight, const at::Tensor& scale,
                        const at::Tensor& zero_point, const GroupShape& shape);

// The fake-quantized matrix under the parameters' rounded scales and zero points.
at::Tensor FakeQuantize(const at::Tensor& weight, const QuantParameters& parameters);

// (clamp(round(levels) + zero_point, 0, max_code) - zero_point) * scale: the matrix whose weights
// are held in steps of their scales. So a change of a scale moves all its weights, codes kept, and
// its gradient is that of E2E-QP; FakeQuantize above keeps weights, whose codes then change.
// Rounding passes gradients straight through.
at::Tensor FakeQuantizeLevels(const at::Tensor& levels, const QuantParameters& parameters);

// The codes that the forward pass of FakeQuantize uses now, packed with scales and zero points.
// ABORTED when weights or scales are not finite.
absl::StatusOr<PackedTensor> PackTrained(const at::Tensor& weight,
                                         const QuantParameters& parameters);

// What a packed matrix was quantized with: under these, its dense form has its codes.
QuantParameters ToQuantParameters(const PackedTensor& tensor, at::Device device);

// A packed matrix whose scales can be trained; everything else is fixed.
struct CodedMatrix {
  GroupShape shape;
  at::Tensor codes;                  // bytes, [rows, cols]
  at::Tensor zero_point;             // float, [rows, num_groups]
  at::ScalarType type = at::kFloat;  // of W in products: float or bfloat16
};
CodedMatrix ToCodedMatrix(const PackedTensor& tensor, at::ScalarType type, at::Device device);

// x * W^T + bias with W = (codes - zero_point) * scale; differentiable in x and scale. W and its
// gradient live only inside the call, forward and backward: a model's dense weights are never in
// memory at once. x: [..., cols], of W's type as bias is, which may be undefined; scale: float,
// [rows, num_groups].
at::Tensor CodedLinear(const at::Tensor& x, const at::Tensor& scale, const CodedMatrix& matrix,
                       const at::Tensor& bias);

// The matrix in float.
at::Tensor ToDense(const PackedTensor& tensor, at::Device device);

// Matrix `name` of `model`, which must have it, as it is served, in float.
at::Tensor ServedMatrix(const PackedModel& model, const std::string& name, at::Device device);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_FAKE_QUANTIZER_H_

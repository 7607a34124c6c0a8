#include "core/quant/fake_quantizer.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/half.h"
#include "core/base/status_macros.h"
#include "core/quant/elements-inl.h"

namespace quern {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Per-group values repeated to columns, [rows, cols].
at::Tensor ToColumns(const at::Tensor& per_group, const GroupShape& shape) {
  return per_group.repeat_interleave(shape.group_size, 1).narrow(1, 0, shape.cols);
}

// Sums over the columns of each group, [rows, num_groups].
at::Tensor SumGroups(const at::Tensor& per_column, const GroupShape& shape) {
  const int64_t padding = shape.num_groups() * shape.group_size - shape.cols;
  return at::constant_pad_nd(per_column, {0, padding})
      .view({shape.rows, shape.num_groups(), shape.group_size})
      .sum(2);
}

bool OnCpu(const at::Tensor& tensor) { return tensor.device().is_cpu(); }

// FakeQuantizeRows by tensor operations, for devices other than the CPU.
struct DeviceGrid {
  at::Tensor scale;
  at::Tensor zero_point;
  at::Tensor ratio;  // weight / scale
  at::Tensor u;      // round(ratio) + zero_point
  at::Tensor code;
};

DeviceGrid OnDevice(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& zero_point,
                    const GroupShape& shape) {
  DeviceGrid grid{ToColumns(scale, shape), ToColumns(zero_point, shape)};
  grid.ratio = weight / grid.scale;
  grid.u = grid.ratio.round() + grid.zero_point;
  grid.code = grid.u.clamp(0, shape.max_code());
  return grid;
}

class FakeQuantizeFunction : public Function<FakeQuantizeFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight,
                            const at::Tensor& scale, const at::Tensor& zero_point,
                            const GroupShape& shape) {
    RECORD_USER_SCOPE("quern::fake_quantize");
    context->save_for_backward({weight, scale, zero_point});
    context->saved_data["group_size"] = shape.group_size;
    context->saved_data["bits"] = int64_t{shape.bits};
    if (!OnCpu(weight)) {
      const DeviceGrid grid = OnDevice(weight, scale, zero_point, shape);
      return (grid.code - grid.zero_point) * grid.scale;
    }
    at::Tensor fake = at::empty_like(weight);
    AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "FakeQuantize", [&] {
      const GroupGrid<scalar_t> grid{scale.const_data_ptr<scalar_t>(),
                                     zero_point.const_data_ptr<scalar_t>()};
      const scalar_t* w = weight.const_data_ptr<scalar_t>();
      scalar_t* out = fake.data_ptr<scalar_t>();
      ParallelRows(shape, [&](int64_t begin, int64_t end) {
        FakeQuantizeRows<scalar_t>(shape, w, grid, begin, end, out, nullptr);
      });
    });
    return fake;
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    RECORD_USER_SCOPE("quern::fake_quantize backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& weight = saved[0];
    const GroupShape shape{weight.size(0), weight.size(1),
                           context->saved_data["group_size"].toInt(),
                           static_cast<int>(context->saved_data["bits"].toInt())};
    variable_list grads = OnCpu(weight)
                              ? BackwardCpu(context, saved, shape, grad_outputs[0].contiguous())
                              : BackwardDevice(saved, shape, grad_outputs[0]);
    grads.emplace_back();  // of shape
    return grads;
  }

 private:
  static variable_list BackwardCpu(AutogradContext* context, const variable_list& saved,
                                   const GroupShape& shape, const at::Tensor& grad) {
    at::Tensor grad_weight = context->needs_input_grad(0) ? at::empty_like(saved[0]) : at::Tensor();
    at::Tensor grad_scale = at::empty_like(saved[1]);
    at::Tensor grad_zero_point =
        context->needs_input_grad(2) ? at::empty_like(saved[2]) : at::Tensor();
    AT_DISPATCH_FLOATING_TYPES(grad.scalar_type(), "FakeQuantizeBackward", [&] {
      const auto pointer = [](const at::Tensor& tensor) {
        return tensor.defined() ? tensor.data_ptr<scalar_t>() : nullptr;
      };
      const GroupGrid<scalar_t> grid{pointer(saved[1]), pointer(saved[2])};
      const scalar_t* w = pointer(saved[0]);
      const scalar_t* g = pointer(grad);
      scalar_t* grad_w = pointer(grad_weight);
      scalar_t* grad_s = pointer(grad_scale);
      scalar_t* grad_z = pointer(grad_zero_point);
      ParallelRows(shape, [&](int64_t begin, int64_t end) {
        FakeQuantizeRowsBackward<scalar_t>(shape, w, grid, g, begin, end, grad_w, grad_s, grad_z);
      });
    });
    return {grad_weight, grad_scale, grad_zero_point};
  }

  static variable_list BackwardDevice(const variable_list& saved, const GroupShape& shape,
                                      const at::Tensor& grad) {
    const DeviceGrid grid = OnDevice(saved[0], saved[1], saved[2], shape);
    const at::Tensor inside = grid.u == grid.code;
    const at::Tensor zero = at::zeros({}, grad.options());
    const at::Tensor by_scale =
        grad * (grid.code - grid.zero_point - at::where(inside, grid.ratio, zero));
    return {at::where(inside, grad, zero), SumGroups(by_scale, shape),
            -saved[1] * SumGroups(at::where(inside, zero, grad), shape)};
  }
};

// `value` in the forward pass, the gradient of `parameter` in the backward pass.
class StraightThrough : public Function<StraightThrough> {
 public:
  static at::Tensor forward(AutogradContext*, const at::Tensor& parameter,
                            const at::Tensor& value) {
    return value.to(parameter.scalar_type());
  }
  static variable_list backward(AutogradContext*, variable_list grad_outputs) {
    return {grad_outputs[0], at::Tensor()};
  }
};

at::Tensor DequantizeCodes(const at::Tensor& scale, const CodedMatrix& matrix) {
  RECORD_USER_SCOPE("quern::dequantize");
  const GroupShape& shape = matrix.shape;
  if (!OnCpu(scale)) {
    return ((matrix.codes - ToColumns(matrix.zero_point, shape)) * ToColumns(scale, shape))
        .to(matrix.type);
  }
  at::Tensor weight = at::empty({shape.rows, shape.cols}, scale.options().dtype(matrix.type));
  const GroupGrid<float> grid{scale.const_data_ptr<float>(),
                              matrix.zero_point.const_data_ptr<float>()};
  const uint8_t* codes = matrix.codes.const_data_ptr<uint8_t>();
  WithElements(
      [&](auto* out) {
        ParallelRows(shape, [&](int64_t begin, int64_t end) {
          DequantizeRows(shape, codes, grid, begin, end, out);
        });
      },
      weight);
  return weight;
}

at::Tensor ReduceScaleGradient(const at::Tensor& grad_weight, const CodedMatrix& matrix) {
  const GroupShape& shape = matrix.shape;
  if (!OnCpu(grad_weight)) {
    return SumGroups(
        (matrix.codes - ToColumns(matrix.zero_point, shape)) * grad_weight.to(at::kFloat), shape);
  }
  at::Tensor grad_scale = at::empty({shape.rows, shape.num_groups()}, matrix.zero_point.options());
  const uint8_t* codes = matrix.codes.const_data_ptr<uint8_t>();
  const float* zero_points = matrix.zero_point.const_data_ptr<float>();
  float* out = grad_scale.data_ptr<float>();
  WithElements(
      [&](const auto* grad) {
        ParallelRows(shape, [&](int64_t begin, int64_t end) {
          ReduceScaleGradientRows(shape, codes, zero_points, grad, begin, end, out);
        });
      },
      grad_weight);
  return grad_scale;
}

class CodedLinearFunction : public Function<CodedLinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& scale,
                            const CodedMatrix& matrix) {
    context->save_for_backward({x, scale, matrix.codes, matrix.zero_point});
    context->saved_data["group_size"] = matrix.shape.group_size;
    context->saved_data["bits"] = int64_t{matrix.shape.bits};
    return at::linear(x, DequantizeCodes(scale, matrix));
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    RECORD_USER_SCOPE("quern::coded_linear backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& codes = saved[2];
    const CodedMatrix matrix{
        {codes.size(0), codes.size(1), context->saved_data["group_size"].toInt(),
         static_cast<int>(context->saved_data["bits"].toInt())},
        codes,
        saved[3],
        saved[0].scalar_type()};
    const at::Tensor grad = grad_outputs[0].reshape({-1, matrix.shape.rows});
    at::Tensor grad_x;
    if (context->needs_input_grad(0)) {
      grad_x = grad.mm(DequantizeCodes(saved[1], matrix)).view(saved[0].sizes());
    }
    at::Tensor grad_scale;
    if (context->needs_input_grad(1)) {
      const at::Tensor x = saved[0].reshape({-1, matrix.shape.cols});
      grad_scale = ReduceScaleGradient(grad.t().mm(x), matrix);
    }
    return {grad_x, grad_scale, at::Tensor()};
  }
};

SearchedGrid GridOf(QuantParameters& parameters) {
  return {parameters.scale.data_ptr<float>(), parameters.zero_point.data_ptr<float>()};
}

QuantParameters ToDevice(QuantParameters parameters, at::Device device) {
  parameters.scale = parameters.scale.to(device);
  parameters.zero_point = parameters.zero_point.to(device);
  return parameters;
}

template <typename T>
std::vector<T> ToVector(const at::Tensor& tensor) {
  const at::Tensor host = tensor.cpu().contiguous();
  const T* data = host.const_data_ptr<T>();
  return std::vector<T>(data, data + host.numel());
}

at::Tensor FromVector(const std::vector<float>& values, at::IntArrayRef sizes, at::Device device) {
  at::Tensor tensor = at::empty(sizes, at::kFloat);
  std::copy(values.begin(), values.end(), tensor.data_ptr<float>());
  return tensor.to(device);
}

}  // namespace

QuantParameters EmptyParameters(const at::Tensor& weight, const QuantFormat& format) {
  const int64_t cols = weight.size(1);
  QuantParameters result{
      .shape = {weight.size(0), cols,
                format.group_size == 0 ? cols : std::min<int64_t>(format.group_size, cols),
                format.bits},
      .symmetric = format.symmetric};
  result.scale = at::empty({result.shape.rows, result.shape.num_groups()}, at::kFloat);
  result.zero_point = at::empty_like(result.scale);
  return result;
}

QuantParameters SearchQuantParameters(const at::Tensor& weight, const at::Tensor& importance,
                                      const QuantFormat& format) {
  QuantParameters result = EmptyParameters(weight, format);
  const at::Tensor w = weight.detach().cpu().contiguous();
  // A channel that calibration never used still has a weight to keep.
  at::Tensor h = importance.cpu().to(at::kFloat);
  h = (h + h.mean() * 1e-4 + 1e-30).contiguous();
  const SearchedGrid grid = GridOf(result);
  ParallelRows(result.shape, [&](int64_t begin, int64_t end) {
    SearchGridRows(result.shape, format.symmetric, w.const_data_ptr<float>(),
                   h.const_data_ptr<float>(), begin, end, grid);
  });
  return ToDevice(std::move(result), weight.device());
}

QuantParameters MinMaxQuantParameters(const at::Tensor& weight, const QuantFormat& format) {
  QuantParameters result = EmptyParameters(weight, format);
  const at::Tensor w = weight.detach().cpu().contiguous();
  const SearchedGrid grid = GridOf(result);
  ParallelRows(result.shape, [&](int64_t begin, int64_t end) {
    MinMaxGridRows(result.shape, format.symmetric, w.const_data_ptr<float>(), begin, end, grid);
  });
  return ToDevice(std::move(result), weight.device());
}

at::Tensor RoundScale(const at::Tensor& scale) {
  const at::Tensor host = scale.detach().to(at::kCPU, at::kFloat).contiguous();
  at::Tensor rounded = at::empty_like(host);
  std::transform(host.const_data_ptr<float>(), host.const_data_ptr<float>() + host.numel(),
                 rounded.data_ptr<float>(), StoredScale);
  return StraightThrough::apply(scale, rounded.to(scale.device()));
}

at::Tensor RoundZeroPoint(const at::Tensor& zero_point, int max_code) {
  return StraightThrough::apply(zero_point, zero_point.detach().round().clamp(0, max_code));
}

at::Tensor FakeQuantize(const at::Tensor& weight, const at::Tensor& scale,
                        const at::Tensor& zero_point, const GroupShape& shape) {
  return FakeQuantizeFunction::apply(weight, scale, zero_point, shape);
}

at::Tensor UsedScale(const QuantParameters& parameters) {
  if (parameters.round_scale) return RoundScale(parameters.scale);
  const at::Tensor scale = parameters.scale.detach();
  at::Tensor used = scale.clamp(1e-4, 1e4);
  // A symmetric grid's sign is part of it.
  if (parameters.symmetric) used = at::where(scale < 0, -(-scale).clamp(1e-4, 1e4), used);
  return StraightThrough::apply(parameters.scale, used);
}

at::Tensor FakeQuantize(const at::Tensor& weight, const QuantParameters& parameters) {
  return FakeQuantize(weight, UsedScale(parameters),
                      RoundZeroPoint(parameters.zero_point, parameters.shape.max_code()),
                      parameters.shape);
}

at::Tensor FakeQuantizeLevels(const at::Tensor& levels, const QuantParameters& parameters) {
  const GroupShape& shape = parameters.shape;
  const at::Tensor whole =
      FakeQuantize(levels, at::ones_like(parameters.scale.detach()),
                   RoundZeroPoint(parameters.zero_point, shape.max_code()), shape);
  const at::Tensor scale = UsedScale(parameters);
  if (shape.cols % shape.group_size != 0) return whole * ToColumns(scale, shape);
  return (whole.view({shape.rows, shape.num_groups(), shape.group_size}) * scale.unsqueeze(2))
      .view({shape.rows, shape.cols});
}

absl::StatusOr<PackedTensor> PackTrained(const at::Tensor& weight,
                                         const QuantParameters& parameters) {
  const at::NoGradGuard no_grad;
  const GroupShape& shape = parameters.shape;
  const at::Tensor w = weight.detach().cpu().contiguous();
  const at::Tensor scale = UsedScale(parameters).cpu().contiguous();
  const at::Tensor zero_point =
      RoundZeroPoint(parameters.zero_point, shape.max_code()).cpu().contiguous();
  if (!at::isfinite(w).all().item<bool>() || !at::isfinite(scale).all().item<bool>() ||
      !at::isfinite(zero_point).all().item<bool>()) {
    return absl::AbortedError("training left weights or scales that are not finite");
  }
  std::vector<uint8_t> codes(w.numel());
  const GroupGrid<float> grid{scale.const_data_ptr<float>(), zero_point.const_data_ptr<float>()};
  ParallelRows(shape, [&](int64_t begin, int64_t end) {
    FakeQuantizeRows<float>(shape, w.const_data_ptr<float>(), grid, begin, end, nullptr,
                            codes.data());
  });
  std::vector<uint8_t> zero_points;
  if (!parameters.symmetric) zero_points = ToVector<uint8_t>(zero_point.to(at::kByte));
  return Pack(static_cast<int>(shape.rows), static_cast<int>(shape.cols), shape.bits,
              static_cast<int>(shape.group_size), parameters.symmetric, codes,
              ToVector<float>(scale), zero_points);
}

QuantParameters ToQuantParameters(const PackedTensor& tensor, at::Device device) {
  QuantParameters result{.shape = {tensor.rows, tensor.cols, tensor.group_size, tensor.bits},
                         .symmetric = tensor.symmetric};
  const at::DimVector sizes = {tensor.rows, tensor.num_groups()};
  result.scale = FromVector(UnpackScales(tensor), sizes, device);
  const std::vector<uint8_t> zero_points = UnpackZeroPoints(tensor);
  result.zero_point =
      FromVector(std::vector<float>(zero_points.begin(), zero_points.end()), sizes, device);
  return result;
}

CodedMatrix ToCodedMatrix(const PackedTensor& tensor, at::ScalarType type, at::Device device) {
  const std::vector<uint8_t> codes = UnpackCodes(tensor);
  const std::vector<uint8_t> zero_points = UnpackZeroPoints(tensor);
  CodedMatrix matrix{.shape = {tensor.rows, tensor.cols, tensor.group_size, tensor.bits},
                     .type = type};
  at::Tensor bytes = at::empty({tensor.rows, tensor.cols}, at::kByte);
  std::copy(codes.begin(), codes.end(), bytes.data_ptr<uint8_t>());
  matrix.codes = bytes.to(device);
  matrix.zero_point = FromVector(std::vector<float>(zero_points.begin(), zero_points.end()),
                                 {tensor.rows, tensor.num_groups()}, device);
  return matrix;
}

at::Tensor CodedLinear(const at::Tensor& x, const at::Tensor& scale, const CodedMatrix& matrix,
                       const at::Tensor& bias) {
  const at::Tensor y = CodedLinearFunction::apply(x, scale, matrix);
  return bias.defined() ? y + bias : y;
}

at::Tensor ToDense(const PackedTensor& tensor, at::Device device) {
  return FromVector(Dequantize(tensor), {tensor.rows, tensor.cols}, device);
}

at::Tensor ServedMatrix(const PackedModel& model, const std::string& name, at::Device device) {
  const auto packed = model.matrices.find(name);
  if (packed != model.matrices.end()) return ToDense(packed->second, device);
  const HalfTensor& half = model.half_matrices.at(name);
  at::Tensor dense = at::empty({half.rows, half.cols}, at::kFloat);
  std::transform(half.data, half.data + dense.numel(), dense.data_ptr<float>(), HalfToFloat);
  return dense.to(device);
}

}  // namespace quern

#include "core/quant/elementwise.h"

#include <algorithm>
#include <vector>

#include "core/quant/elements-inl.h"
#include "core/quant/elementwise_loops.h"

namespace quern {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Elements of a part: what a thread takes at once, and what fits into its cache.
constexpr int64_t kPartElements = 1 << 14;
int64_t RowsOfPart(int64_t cols) { return std::max<int64_t>(1, kPartElements / cols); }

// Below it a token's target is nothing, and no error relative to it makes sense.
constexpr double kLeastSize = 1e-12;

class GatedSiluFunction : public Function<GatedSiluFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate,
                            const at::Tensor& up) {
    RECORD_USER_SCOPE("quern::gated_silu");
    const at::Tensor g = gate.contiguous();
    const at::Tensor u = up.contiguous();
    context->save_for_backward({g, u});
    at::Tensor out = at::empty_like(g);
    WithElements(
        [&](auto* gates, auto* ups, auto* outs) {
          at::parallel_for(0, g.numel(), kPartElements, [&](int64_t begin, int64_t end) {
            GatedSiluForward(gates + begin, ups + begin, end - begin, outs + begin);
          });
        },
        g, u, out);
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    RECORD_USER_SCOPE("quern::gated_silu backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor grad = grad_outputs[0].contiguous();
    at::Tensor grad_gate = at::empty_like(saved[0]);
    at::Tensor grad_up = at::empty_like(saved[1]);
    WithElements(
        [&](auto* gates, auto* ups, auto* grads, auto* grad_gates, auto* grad_ups) {
          at::parallel_for(0, grad.numel(), kPartElements, [&](int64_t begin, int64_t end) {
            GatedSiluBackward(gates + begin, ups + begin, grads + begin, end - begin,
                              grad_gates + begin, grad_ups + begin);
          });
        },
        saved[0], saved[1], grad, grad_gate, grad_up);
    return {grad_gate, grad_up};
  }
};

class RmsNormFunction : public Function<RmsNormFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            double epsilon) {
    RECORD_USER_SCOPE("quern::rms_norm");
    const at::Tensor in = x.contiguous();
    const int64_t cols = in.size(-1);
    const int64_t num_rows = in.numel() / cols;
    const at::Tensor w = weight.contiguous();
    at::Tensor out = at::empty_like(in);
    at::Tensor inverse_rms = at::empty({num_rows}, in.options());
    at::parallel_for(0, num_rows, RowsOfPart(cols), [&](int64_t begin, int64_t end) {
      RmsNormForward(in.const_data_ptr<float>(), w.const_data_ptr<float>(),
                     static_cast<float>(epsilon), cols, begin, end, inverse_rms.data_ptr<float>(),
                     out.data_ptr<float>());
    });
    context->save_for_backward({in, w, inverse_rms});
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    RECORD_USER_SCOPE("quern::rms_norm backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor grad = grad_outputs[0].contiguous();
    const int64_t cols = grad.size(-1);
    const int64_t num_rows = grad.numel() / cols;
    // The weight's gradient is a sum of the parts', whose size does not depend on the threads.
    const int64_t part_rows = RowsOfPart(cols);
    const int64_t num_parts = (num_rows + part_rows - 1) / part_rows;
    at::Tensor grad_x = at::empty_like(grad);
    at::Tensor grad_weights = at::empty({num_parts, cols}, grad.options());
    at::parallel_for(0, num_parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        RmsNormBackward(saved[0].const_data_ptr<float>(), saved[1].const_data_ptr<float>(),
                        saved[2].const_data_ptr<float>(), grad.const_data_ptr<float>(), cols,
                        part * part_rows, std::min((part + 1) * part_rows, num_rows),
                        grad_x.data_ptr<float>(), grad_weights.data_ptr<float>() + part * cols);
      }
    });
    return {grad_x, grad_weights.sum(0), at::Tensor()};
  }
};

// The mean over rows of |output - target|^2 over |target|^2, or over the number of columns.
class RowErrorFunction : public Function<RowErrorFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& output,
                            const at::Tensor& target, bool relative) {
    RECORD_USER_SCOPE("quern::row_error");
    const at::Tensor out = output.contiguous();
    const at::Tensor wanted = target.contiguous();
    const int64_t cols = out.size(-1);
    const int64_t num_rows = out.numel() / cols;
    std::vector<double> errors(num_rows);
    std::vector<double> sizes(num_rows);
    at::parallel_for(0, num_rows, RowsOfPart(cols), [&](int64_t begin, int64_t end) {
      SquareErrors(out.const_data_ptr<float>(), wanted.const_data_ptr<float>(), cols, begin, end,
                   errors.data(), sizes.data());
    });
    at::Tensor factors = at::empty({num_rows}, out.options());
    double sum = 0;
    for (int64_t row = 0; row < num_rows; ++row) {
      const double size = relative ? std::max(sizes[row], kLeastSize) : static_cast<double>(cols);
      sum += errors[row] / size;
      factors.data_ptr<float>()[row] = static_cast<float>(2 / size / static_cast<double>(num_rows));
    }
    context->save_for_backward({out, wanted, factors});
    return at::full({}, sum / static_cast<double>(num_rows), out.options());
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    RECORD_USER_SCOPE("quern::row_error backward");
    const variable_list saved = context->get_saved_variables();
    const int64_t cols = saved[0].size(-1);
    const at::Tensor factors = saved[2] * grad_outputs[0];
    at::Tensor grad = at::empty_like(saved[0]);
    at::parallel_for(0, factors.numel(), RowsOfPart(cols), [&](int64_t begin, int64_t end) {
      SquareErrorsBackward(saved[0].const_data_ptr<float>(), saved[1].const_data_ptr<float>(),
                           factors.const_data_ptr<float>(), cols, begin, end,
                           grad.data_ptr<float>());
    });
    return {grad, at::Tensor(), at::Tensor()};
  }
};

class SplitHeadsFunction : public Function<SplitHeadsFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const RotaryTables* rotary) {
    RECORD_USER_SCOPE("quern::split_heads");
    const at::Tensor states = x.contiguous();
    const at::Tensor cosines = rotary != nullptr ? rotary->cosines : at::Tensor();
    const at::Tensor sines = rotary != nullptr ? rotary->sines : at::Tensor();
    context->save_for_backward({cosines, sines});
    context->saved_data["type"] = static_cast<int64_t>(x.scalar_type());
    at::Tensor heads =
        at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options().dtype(at::kFloat));
    const HeadLayout layout = Layout(heads, cosines, sines);
    WithElements(
        [&](auto* from) {
          ForTokens(layout, heads.size(0), [&](int64_t first, int64_t begin, int64_t end) {
            SplitHeads(layout, from + first, begin, end, heads.data_ptr<float>() + first);
          });
        },
        states);
    return heads;
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    RECORD_USER_SCOPE("quern::split_heads backward");
    const variable_list saved = context->get_saved_variables();
    const at::Tensor grad_heads = grad_outputs[0].contiguous();
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    at::Tensor grad =
        at::empty({grad_heads.size(0), grad_heads.size(2), grad_heads.size(1), grad_heads.size(3)},
                  grad_heads.options().dtype(type));
    const HeadLayout layout = Layout(grad_heads, saved[0], saved[1]);
    WithElements(
        [&](auto* to) {
          ForTokens(layout, grad.size(0), [&](int64_t first, int64_t begin, int64_t end) {
            SplitHeadsBackward(layout, grad_heads.const_data_ptr<float>() + first, begin, end,
                               to + first);
          });
        },
        grad);
    return {grad, at::Tensor()};
  }

 private:
  static HeadLayout Layout(const at::Tensor& heads, const at::Tensor& cosines,
                           const at::Tensor& sines) {
    return {.num_tokens = heads.size(2),
            .num_heads = heads.size(1),
            .head_dim = heads.size(3),
            .cosines = cosines.defined() ? cosines.const_data_ptr<float>() : nullptr,
            .sines = sines.defined() ? sines.const_data_ptr<float>() : nullptr};
  }

  // Calls body(the sequence's first element, token_begin, token_end) over all sequences' tokens.
  template <typename Body>
  static void ForTokens(const HeadLayout& layout, int64_t num_sequences, const Body& body) {
    const int64_t width = layout.num_heads * layout.head_dim;
    at::parallel_for(0, num_sequences * layout.num_tokens,
                     std::max<int64_t>(1, kPartElements / width), [&](int64_t begin, int64_t end) {
                       while (begin < end) {
                         const int64_t sequence = begin / layout.num_tokens;
                         const int64_t first = sequence * layout.num_tokens;
                         const int64_t last = std::min(end, first + layout.num_tokens);
                         body(first * width, begin - first, last - first);
                         begin = last;
                       }
                     });
  }
};

}  // namespace

at::Tensor GatedSilu(const at::Tensor& gate, const at::Tensor& up) {
  if (!gate.is_cpu()) return at::silu(gate) * up;
  return GatedSiluFunction::apply(gate, up);
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  if (!x.is_cpu()) return at::rms_norm(x, {x.size(-1)}, weight, epsilon);
  return RmsNormFunction::apply(x, weight, epsilon);
}

at::Tensor MeanSquareError(const at::Tensor& output, const at::Tensor& target) {
  if (!output.is_cpu()) return (output - target).square().mean();
  return RowErrorFunction::apply(output, target, /*relative=*/false);
}

at::Tensor MeanRelativeError(const at::Tensor& output, const at::Tensor& target) {
  if (!output.is_cpu()) {
    const at::Tensor errors = (output - target).square().sum(-1);
    return (errors / target.square().sum(-1).clamp_min(kLeastSize)).mean();
  }
  return RowErrorFunction::apply(output, target, /*relative=*/true);
}

at::Tensor SplitHeads(const at::Tensor& x, const RotaryTables* rotary) {
  if (x.is_cpu()) return SplitHeadsFunction::apply(x, rotary);
  if (rotary == nullptr) return x.to(at::kFloat).transpose(1, 2);
  const int64_t half = x.size(3) / 2;
  const at::Tensor first = x.narrow(3, 0, half);
  const at::Tensor second = x.narrow(3, half, half);
  return at::cat({first * rotary->cosines - second * rotary->sines,
                  second * rotary->cosines + first * rotary->sines},
                 3)
      .transpose(1, 2);
}

}  // namespace quern

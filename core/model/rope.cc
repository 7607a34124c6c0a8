#include "core/model/rope.h"

#include <cmath>
#include <cstddef>
#include <numbers>

namespace quern {
namespace {

// Hugging Face transformers, modeling_rope_utils.py, _compute_llama3_parameters: wavelengths that
// fit often into the original context stay, those that hardly fit once are stretched by `factor`,
// and those between are blended.
double ScaleLlama3(double frequency, const RopeScaling& scaling) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double turns = scaling.original_max_position_embeddings / wavelength;
  if (turns > scaling.high_freq_factor) return frequency;
  if (turns < scaling.low_freq_factor) return frequency / scaling.factor;
  const double smooth =
      (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace

std::vector<float> RopeFrequencies(const ModelConfig& config) {
  std::vector<float> frequencies(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / config.head_dim;
    double frequency = std::pow(config.rope_theta, -exponent);
    switch (config.rope_scaling.type) {
      case RopeScaling::Type::kNone:
        break;
      case RopeScaling::Type::kLinear:
        frequency /= config.rope_scaling.factor;
        break;
      case RopeScaling::Type::kLlama3:
        frequency = ScaleLlama3(frequency, config.rope_scaling);
        break;
    }
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

}  // namespace quern

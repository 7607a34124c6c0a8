#ifndef QUERN_CORE_BENCH_SYNTHETIC_MODEL_H_
#define QUERN_CORE_BENCH_SYNTHETIC_MODEL_H_

// Models with the shapes of well-known ones and random weights: speed does not depend on values.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>
#include <string>
#include <vector>

#include "core/artifact/packed_model.h"
#include "core/engine/model_source.h"
#include "core/model/model_config.h"

namespace quern {

// "smollm2-135m", "tinyllama-1.1b", "llama-2-7b", "llama-3-8b".
std::vector<std::string> SyntheticShapes();

// INVALID_ARGUMENT when there is no such shape.
absl::StatusOr<ModelConfig> SyntheticConfig(absl::string_view shape);

// Quantized as `format` says; without a tokenizer. Matrices share memory as large as the largest.
// INVALID_ARGUMENT as SyntheticConfig and QuantFormat::Validate.
absl::StatusOr<std::unique_ptr<ModelSource>> MakeSyntheticModel(absl::string_view shape,
                                                                const QuantFormat& format);

}  // namespace quern

#endif  // QUERN_CORE_BENCH_SYNTHETIC_MODEL_H_

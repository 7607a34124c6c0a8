#ifndef QUERN_CORE_CHECKPOINT_GGUF_CONFIG_H_
#define QUERN_CORE_CHECKPOINT_GGUF_CONFIG_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/checkpoint/gguf.h"
#include "core/checkpoint/gguf_writer.h"
#include "core/model/model_config.h"

namespace quern {

// The configuration of a GGUF of architecture llama (Mistral comes as that, too), qwen2 or qwen3,
// from its metadata and from which tensors are there (biases, own head, RoPE factors).
// `max_position_embeddings` replaces the declared context unless 0. INVALID_ARGUMENT naming the
// key, its value and what is supported.
absl::StatusOr<ModelConfig> ModelConfigFromGguf(const GgufFile& file, int max_position_embeddings);

// The inverse: adds general.architecture and the architecture's keys. The scaling of RoPE type
// llama3 is not among them, see GgufRopeFactors.
void AddModelConfigToGguf(const ModelConfig& config, GgufWriter& writer);

// The values of tensor kGgufRopeFactorsName, [head_dim / 2]; empty when the model has none.
std::vector<float> GgufRopeFactors(const ModelConfig& config);

// The GGUF name of a tensor of ModelTensors(), e.g. "blk.0.attn_q.weight".
std::string GgufTensorName(absl::string_view hugging_face_name);

// The tensor of factors by which converters express Llama 3's rope scaling.
inline constexpr absl::string_view kGgufRopeFactorsName = "rope_freqs.weight";

// Whether the rows of q and k lie in the order of interleaved rotary pairs. llama.cpp turns
// neighbouring elements (2i, 2i+1) for the llama architecture, so its converter reorders the rows
// of each head; for the Qwen architectures it turns elements i and i + head_dim / 2, as Hugging
// Face does, and leaves the rows alone.
bool HasInterleavedRotaryRows(const ModelConfig& config);

// The row, as Hugging Face has them, of row `row` of such a matrix.
int64_t InterleavedRow(int64_t row, int head_dim);

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_GGUF_CONFIG_H_

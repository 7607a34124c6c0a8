#ifndef QUERN_CORE_CHECKPOINT_CHECKPOINT_H_
#define QUERN_CORE_CHECKPOINT_CHECKPOINT_H_

// What people bring: a Hugging Face directory or a GGUF file, behind one face. A GGUF's tensor
// names, row order of q and k, and vocabulary become Hugging Face's here, once. Hostile input ends
// here: everything is checked before it is allocated or used.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/json.h"
#include "core/base/tensor_view.h"
#include "core/model/model_config.h"

namespace quern {

// A longer chat template is refused.
inline constexpr size_t kMaxChatTemplateBytes = size_t{1} << 20;

struct OpenCheckpointOptions {
  // Replaces the declared context (max_position_embeddings); 0 keeps it.
  int max_position_embeddings = 0;
};

// Thread-safe once opened.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  const ModelConfig& config() const { return config_; }

  // The vocabulary in Hugging Face tokenizer.json form (a GGUF's is translated), at most 64 MiB,
  // for Tokenizer::FromJson. Empty when the checkpoint carries none.
  const std::string& tokenizer_json() const { return tokenizer_json_; }

  // The model's own chat template text (at most kMaxChatTemplateBytes), or empty. It is recognised,
  // never run.
  const std::string& chat_template() const { return chat_template_; }

  // The tensor under its Hugging Face name: exactly those of ModelTensors(config()), each with
  // that shape, dtype F32, F16 or BF16 (block-quantized GGUF tensors are dequantized to F32, on
  // first use, and kept). The view stays valid as long as this object. Opening has checked that
  // every tensor is there; a tied head is absent. NOT_FOUND for another name; RESOURCE_EXHAUSTED
  // when there is no memory to dequantize into. DATA_LOSS when a value is not finite is reported by
  // the reader of the values, not here.
  virtual absl::StatusOr<TensorView> Tensor(absl::string_view name) const = 0;

  // Type and shape of the tensor that Tensor gives; data is null, and nothing is dequantized.
  virtual absl::StatusOr<TensorView> TensorShape(absl::string_view name) const = 0;

  // SHA-256 of the one GGUF file; or of the lines "<SHA-256>  <name>\n", sorted by name, of all
  // files that were read from the directory: `LC_ALL=C sha256sum FILES | sha256sum`. Reads all
  // weights: seconds.
  virtual absl::StatusOr<std::string> DigestHex() const = 0;

  // Bytes of the weights in the files.
  virtual int64_t weight_bytes() const = 0;

 protected:
  ModelConfig config_;
  std::string tokenizer_json_;
  std::string chat_template_;
};

// A Hugging Face directory whose block matrices are packed integers, as GPTQ and EfficientQAT write
// them: "P.weight" is absent, and P.qweight, P.qzeros, P.scales and, where they are, P.g_idx and
// P.bias are there instead. What those mean is core/convert's to know.
class PackedCheckpoint : public Checkpoint {
 public:
  // `quantization_config` of config.json, or quantize_config.json; null when there is neither.
  virtual const Json& quantization() const = 0;
  // Any tensor of the files, by its own name, shape and type unchecked; null when there is none.
  virtual const TensorView* Find(absl::string_view name) const = 0;
};

// As OpenCheckpoint for a directory. Tensor() gives all that is not packed.
absl::StatusOr<std::unique_ptr<PackedCheckpoint>> OpenPackedCheckpoint(absl::string_view directory);

// `path`: a file that ends in .gguf, or a directory with config.json, model.safetensors (or
// model.safetensors.index.json and the shards model-NNNNN-of-NNNNN.safetensors it names) and, where
// they are, tokenizer.json, generation_config.json (more end ids), chat_template.jinja or
// tokenizer_config.json (the chat template). NOT_FOUND, INVALID_ARGUMENT (not supported: the
// message names key, value and what is), DATA_LOSS (damaged bytes: the message names file and
// place).
absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(
    absl::string_view path, const OpenCheckpointOptions& options = {});

// Reads the configuration alone, for planning: weights are not opened (a GGUF's tensor table is
// read with it). Same errors.
absl::StatusOr<ModelConfig> ReadCheckpointConfig(absl::string_view path);

}  // namespace quern

#endif  // QUERN_CORE_CHECKPOINT_CHECKPOINT_H_

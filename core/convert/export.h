#ifndef QUERN_CORE_CONVERT_EXPORT_H_
#define QUERN_CORE_CONVERT_EXPORT_H_

#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <cstdint>

#include "core/artifact/packed_model.h"

namespace quern {

enum class ExportForm {
  // A GPTQ v2 checkpoint: the blocks' matrices as they are, bit for bit; embedding and head, which
  // GPTQ leaves dense, in float.
  kGptqV2,
  // A plain checkpoint in float, what the packed weights mean: exact.
  kHuggingFace,
  // A GGUF file, model.gguf: every matrix in the smallest of Q4_0, Q5_0, Q8_0 and F32 that holds
  // its values exactly, embeddings of 16 bits as F16. Of group sizes that are multiples of 32, two
  // and three bits and symmetric four fit Q4_0, asymmetric four Q5_0.
  kGguf,
};

// Writes a model.gguf or a Hugging Face directory (config.json, safetensors shards with their
// index, generation_config.json, tokenizer.json, tokenizer_config.json with the chat template) into
// `directory`, which must exist and be empty. Shards hold up to `shard_bytes`, or one tensor, and
// one is in memory at a time. FAILED_PRECONDITION when the form cannot express the model, naming
// the tensor and why; RESOURCE_EXHAUSTED when the disk is full.
absl::Status ExportModel(const PackedModel& model, ExportForm form, absl::string_view directory,
                         int64_t shard_bytes = int64_t{2} << 30);

}  // namespace quern

#endif  // QUERN_CORE_CONVERT_EXPORT_H_

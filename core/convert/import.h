#ifndef QUERN_CORE_CONVERT_IMPORT_H_
#define QUERN_CORE_CONVERT_IMPORT_H_

// Models that other programs quantized, as they are: codes and zero points bit for bit.

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>

#include "core/artifact/packed_model.h"

namespace quern {

struct ImportedModel {
  PackedModel model;
  std::string form;        // "GPTQ v1", "GPTQ v2" or "EfficientQAT"
  std::string source_hex;  // SHA-256 of the checkpoint, as Checkpoint::DigestHex
  // Scales that no half float holds exactly, and were rounded: E2E-QP's come in F32.
  int64_t num_rounded_scales = 0;
};

// Reads the Hugging Face directory of a GPTQ checkpoint (ModelCloud/GPTQModel and AutoGPTQ,
// checkpoint_format "gptq" and "gptq_v2") or of EfficientQAT (OpenGVLab/EfficientQAT, native form:
// no metadata; width and group follow from the shapes) with 2, 3, 4 or 8 bits. Formats where every
// zero point is 2^(bits-1) become symmetric. embedding_bits: what embedding and head, which these
// forms keep dense, are stored as: 16 (half floats) or rounded to 8 or 4.
//
// NOT_FOUND; INVALID_ARGUMENT for what is not supported (another method, activation order, groups
// other than 32, 64, 128 or a whole row, biases that the model has no place for), naming it;
// DATA_LOSS for shapes and values that contradict the configuration.
absl::StatusOr<ImportedModel> ImportModel(absl::string_view directory, int embedding_bits = 16);

}  // namespace quern

#endif  // QUERN_CORE_CONVERT_IMPORT_H_

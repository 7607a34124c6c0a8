#include "core/convert/import.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "core/artifact/pack.h"
#include "core/base/half.h"
#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/convert/gptq.h"
#include "core/model/tensor_names.h"

namespace quern {
namespace {

struct Scheme {
  FieldLayout layout = FieldLayout::kStream;
  int bits = 0;
  std::optional<int> group_size;  // as the metadata say; 0: a whole row
  bool zero_points_less_one = false;
  std::string form;
};

// A matrix as it came, checked.
struct RawMatrix {
  int rows = 0;
  int cols = 0;
  int group_size = 0;                // in [1, cols]
  std::vector<uint8_t> codes;        // [rows, cols]
  std::vector<uint8_t> zero_points;  // [rows, groups]
  std::vector<float> scales;         // [rows, groups]
};

template <typename T>
T Load(const TensorView& view, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(view.data) + index * sizeof(T), sizeof(T));
  return value;
}

absl::StatusOr<float> LoadFloat(const TensorView& view, int64_t index, absl::string_view name) {
  float value = 0;
  switch (view.dtype) {
    case DType::kF32:
      value = Load<float>(view, index);
      break;
    case DType::kF16:
      value = HalfToFloat(Load<uint16_t>(view, index));
      break;
    case DType::kBF16: {
      const uint32_t bits = uint32_t{Load<uint16_t>(view, index)} << 16;
      std::memcpy(&value, &bits, sizeof(value));
      break;
    }
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": dtype is ", DTypeName(view.dtype), ", wanted F32, F16 or BF16"));
  }
  if (!std::isfinite(value)) {
    return absl::DataLossError(absl::StrCat(name, ": holds a value that is not finite"));
  }
  return value;
}

absl::StatusOr<std::vector<float>> LoadFloats(const TensorView& view, absl::string_view name) {
  std::vector<float> values(view.num_elements());
  for (size_t i = 0; i < values.size(); ++i) {
    ASSIGN_OR_RETURN(values[i], LoadFloat(view, static_cast<int64_t>(i), name));
  }
  return values;
}

// Words that `count` fields take.
int64_t WordsOf(FieldLayout layout, int64_t count, int bits) {
  if (layout == FieldLayout::kStream) return count * bits / 32;
  const int per_word = 32 / bits;
  return (count + per_word - 1) / per_word;
}

absl::StatusOr<const TensorView*> FindMatrix(const PackedCheckpoint& checkpoint,
                                             absl::string_view name) {
  const TensorView* view = checkpoint.Find(name);
  if (view == nullptr) {
    return absl::DataLossError(absl::StrCat(name, ": is missing from the weights"));
  }
  if (view->shape.size() != 2) {
    return absl::DataLossError(
        absl::StrCat(name, ": has ", view->shape.size(), " dimensions, wanted 2"));
  }
  return view;
}

absl::StatusOr<const TensorView*> FindWords(const PackedCheckpoint& checkpoint,
                                            absl::string_view name) {
  ASSIGN_OR_RETURN(const TensorView* view, FindMatrix(checkpoint, name));
  if (view->dtype != DType::kI32) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": dtype is ", DTypeName(view->dtype), ", wanted I32"));
  }
  return view;
}

absl::Status CheckShape(const TensorView& view, absl::string_view name, int64_t rows,
                        int64_t cols) {
  if (view.shape[0] == rows && view.shape[1] == cols) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(name, ": found shape [", absl::StrJoin(view.shape, ", "),
                                          "], wanted [", rows, ", ", cols, "]"));
}

// EfficientQAT's files have no metadata: the number of words a column takes tells the width.
absl::StatusOr<Scheme> SchemeOfShapes(const PackedCheckpoint& checkpoint) {
  for (const TensorSpec& spec : ModelTensors(checkpoint.config())) {
    if (spec.kind != TensorSpec::Kind::kBlockMatrix) continue;
    const std::string name = absl::StrCat(absl::StripSuffix(spec.name, "weight"), "qweight");
    ASSIGN_OR_RETURN(const TensorView* qweight, FindWords(checkpoint, name));
    for (const int bits : {2, 3, 4, 8}) {
      if (qweight->shape[0] == WordsOf(FieldLayout::kWithinWords, spec.shape[1], bits)) {
        return Scheme{.layout = FieldLayout::kWithinWords, .bits = bits, .form = "EfficientQAT"};
      }
    }
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", qweight->shape[0], " words for ", spec.shape[1],
        " inputs is none of EfficientQAT's widths (2, 3, 4 and 8 bits); a GPTQ checkpoint needs "
        "quantization_config in config.json or a quantize_config.json"));
  }
  return absl::InternalError("a model without block matrices");
}

absl::StatusOr<Scheme> SchemeOf(const PackedCheckpoint& checkpoint) {
  const Json& json = checkpoint.quantization();
  if (json.is_null()) return SchemeOfShapes(checkpoint);
  ASSIGN_OR_RETURN(const JsonObject config, JsonObject::Of(json, "quantization_config"));
  const auto unsupported = [](absl::string_view key, absl::string_view found,
                              absl::string_view wanted) {
    return absl::InvalidArgumentError(
        absl::StrCat("quantization_config: ", key, ": found ", found, ", supported: ", wanted));
  };
  ASSIGN_OR_RETURN(const std::string method, config.StringOr("quant_method", "gptq"));
  if (method != "gptq") return unsupported("quant_method", method, "gptq");
  ASSIGN_OR_RETURN(const std::string format, config.StringOr("checkpoint_format", "gptq"));
  if (format != "gptq" && format != "gptq_v2") {
    return unsupported("checkpoint_format", format, "gptq, gptq_v2");
  }
  ASSIGN_OR_RETURN(const bool order, config.BoolOr("desc_act", false));
  if (order) return unsupported("desc_act", "true", "false (inputs in their own order)");
  ASSIGN_OR_RETURN(const int64_t bits, config.Int("bits", 2, 8));
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    return unsupported("bits", absl::StrCat(bits), "2, 3, 4, 8");
  }
  ASSIGN_OR_RETURN(const int64_t group_size, config.Int("group_size", -1, 1 << 20));
  return Scheme{.layout = FieldLayout::kStream,
                .bits = static_cast<int>(bits),
                .group_size = group_size <= 0 ? 0 : static_cast<int>(group_size),
                .zero_points_less_one = format == "gptq",
                .form = format == "gptq" ? "GPTQ v1" : "GPTQ v2"};
}

absl::Status CheckOrder(const PackedCheckpoint& checkpoint, const std::string& name,
                        const RawMatrix& matrix) {
  const TensorView* view = checkpoint.Find(name);
  if (view == nullptr) return absl::OkStatus();
  if (view->dtype != DType::kI32 || view->num_elements() != matrix.cols) {
    return absl::DataLossError(absl::StrCat(name, ": wanted ", matrix.cols, " values of type I32"));
  }
  for (int col = 0; col < matrix.cols; ++col) {
    if (Load<int32_t>(*view, col) != col / matrix.group_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": input ", col, " is in group ", Load<int32_t>(*view, col),
                       ", supported: groups of neighbours (desc_act false)"));
    }
  }
  return absl::OkStatus();
}

// Some writers give every matrix a bias, of zeros.
absl::Status CheckBias(const PackedCheckpoint& checkpoint, const std::string& name) {
  const TensorView* view = checkpoint.Find(name);
  const auto specs = ModelTensors(checkpoint.config());
  const bool expected = std::any_of(specs.begin(), specs.end(),
                                    [&](const TensorSpec& spec) { return spec.name == name; });
  if (view == nullptr || expected) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<float> values, LoadFloats(*view, name));
  if (std::all_of(values.begin(), values.end(), [](float v) { return v == 0; })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": is not zero, and the ", checkpoint.config().model_type,
                   " model that config.json describes has no such bias"));
}

absl::StatusOr<RawMatrix> ReadMatrix(const PackedCheckpoint& checkpoint, const Scheme& scheme,
                                     const TensorSpec& spec) {
  const std::string prefix(absl::StripSuffix(spec.name, "weight"));
  RawMatrix matrix{.rows = static_cast<int>(spec.shape[0]),
                   .cols = static_cast<int>(spec.shape[1])};
  const int64_t rows = matrix.rows;
  const int64_t cols = matrix.cols;
  ASSIGN_OR_RETURN(const TensorView* qweight, FindWords(checkpoint, prefix + "qweight"));
  ASSIGN_OR_RETURN(const TensorView* qzeros, FindWords(checkpoint, prefix + "qzeros"));
  ASSIGN_OR_RETURN(const TensorView* scales, FindMatrix(checkpoint, prefix + "scales"));
  const int64_t num_groups = scales->shape[0];
  if (num_groups < 1 || cols % num_groups != 0) {
    return absl::DataLossError(
        absl::StrCat(prefix, "scales: ", num_groups, " groups do not divide ", cols, " inputs"));
  }
  matrix.group_size = static_cast<int>(cols / num_groups);
  if (scheme.group_size.has_value() &&
      matrix.group_size != (*scheme.group_size == 0 ? cols : *scheme.group_size)) {
    return absl::DataLossError(absl::StrCat(prefix, "scales: groups of ", matrix.group_size,
                                            ", quantization_config says ", *scheme.group_size));
  }
  if (scheme.layout == FieldLayout::kStream && (cols % 32 != 0 || rows % 32 != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.name, ": [", rows, ", ", cols, "], GPTQ's layout wants multiples of 32"));
  }
  RETURN_IF_ERROR(
      CheckShape(*qweight, prefix + "qweight", WordsOf(scheme.layout, cols, scheme.bits), rows));
  RETURN_IF_ERROR(CheckShape(*qzeros, prefix + "qzeros", num_groups,
                             WordsOf(scheme.layout, rows, scheme.bits)));
  RETURN_IF_ERROR(CheckShape(*scales, prefix + "scales", num_groups, rows));
  RETURN_IF_ERROR(CheckOrder(checkpoint, prefix + "g_idx", matrix));
  RETURN_IF_ERROR(CheckBias(checkpoint, prefix + "bias"));

  std::vector<uint32_t> words(qweight->shape[0]);
  for (int64_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < words.size(); ++i) {
      words[i] = Load<uint32_t>(*qweight, static_cast<int64_t>(i) * rows + row);
    }
    const std::vector<uint8_t> codes = UnpackFields(words, scheme.layout, scheme.bits, cols);
    matrix.codes.insert(matrix.codes.end(), codes.begin(), codes.end());
  }
  const auto max_code = static_cast<uint8_t>((1 << scheme.bits) - 1);
  matrix.zero_points.resize(rows * num_groups);
  matrix.scales.resize(rows * num_groups);
  words.resize(qzeros->shape[1]);
  for (int64_t group = 0; group < num_groups; ++group) {
    for (size_t i = 0; i < words.size(); ++i) {
      words[i] = Load<uint32_t>(*qzeros, group * qzeros->shape[1] + static_cast<int64_t>(i));
    }
    const std::vector<uint8_t> fields = UnpackFields(words, scheme.layout, scheme.bits, rows);
    for (int64_t row = 0; row < rows; ++row) {
      // Modulo: version 1 writes a zero point of 0 as the largest field.
      matrix.zero_points[row * num_groups + group] =
          (fields[row] + (scheme.zero_points_less_one ? 1 : 0)) & max_code;
      ASSIGN_OR_RETURN(matrix.scales[row * num_groups + group],
                       LoadFloat(*scales, group * rows + row, prefix + "scales"));
    }
  }
  return matrix;
}

// The format that all matrices share.
absl::StatusOr<QuantFormat> FormatOfAll(const std::vector<std::pair<std::string, RawMatrix>>& all,
                                        const Scheme& scheme, int embedding_bits) {
  QuantFormat format{.bits = scheme.bits, .symmetric = true, .embedding_bits = embedding_bits};
  const auto middle = static_cast<uint8_t>(1 << (scheme.bits - 1));
  int group_size = -1;
  for (const auto& [name, matrix] : all) {
    const int own = matrix.group_size == matrix.cols ? 0 : matrix.group_size;
    // A matrix as wide as one group fits both readings.
    if (group_size < 0 || group_size == own || own == 0) {
      group_size = std::max(group_size, own);
    } else if (group_size == 0) {
      group_size = own;
    } else {
      return absl::InvalidArgumentError(absl::StrCat(name, ": groups of ", own, ", others have ",
                                                     group_size, "; supported: one for all"));
    }
    format.symmetric =
        format.symmetric && std::all_of(matrix.zero_points.begin(), matrix.zero_points.end(),
                                        [middle](uint8_t zero) { return zero == middle; });
  }
  format.group_size = group_size;
  if (absl::Status status = format.Validate(); !status.ok()) return status;
  for (const auto& [name, matrix] : all) {
    const auto wanted = FormatOf(format, TensorSpec::Kind::kBlockMatrix, matrix.cols);
    if (wanted->group_size != matrix.group_size) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": groups of ", matrix.group_size,
                                                     ", others have ", format.group_size,
                                                     "; supported: one for all"));
    }
  }
  return format;
}

absl::Status AddOuterMatrix(const PackedCheckpoint& checkpoint, const TensorSpec& spec,
                            PackedModel& model) {
  ASSIGN_OR_RETURN(const TensorView view, checkpoint.Tensor(spec.name));
  ASSIGN_OR_RETURN(const std::vector<float> values, LoadFloats(view, spec.name));
  const int rows = static_cast<int>(spec.shape[0]);
  const int cols = static_cast<int>(spec.shape[1]);
  if (const auto format = FormatOf(model.format, spec.kind, cols); format.has_value()) {
    ASSIGN_OR_RETURN(
        model.matrices[spec.name],
        RoundToNearest(values, rows, cols, format->bits, format->group_size, format->symmetric));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(model.half_matrices[spec.name], ToHalfTensor(values, rows, cols, spec.name));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ImportedModel> ImportModel(absl::string_view directory, int embedding_bits) {
  ASSIGN_OR_RETURN(const std::unique_ptr<PackedCheckpoint> checkpoint,
                   OpenPackedCheckpoint(directory));
  ASSIGN_OR_RETURN(const Scheme scheme, SchemeOf(*checkpoint));
  ImportedModel imported{.form = scheme.form};
  PackedModel& model = imported.model;
  model.config = checkpoint->config();
  model.tokenizer_json = checkpoint->tokenizer_json();
  model.chat_template = checkpoint->chat_template();
  const std::vector<TensorSpec> specs = ModelTensors(model.config);
  std::vector<std::pair<std::string, RawMatrix>> matrices;
  for (const TensorSpec& spec : specs) {
    if (spec.kind != TensorSpec::Kind::kBlockMatrix) continue;
    ASSIGN_OR_RETURN(RawMatrix matrix, ReadMatrix(*checkpoint, scheme, spec));
    matrices.emplace_back(spec.name, std::move(matrix));
  }
  ASSIGN_OR_RETURN(model.format, FormatOfAll(matrices, scheme, embedding_bits));
  for (auto& [name, matrix] : matrices) {
    for (const float scale : matrix.scales) {
      if (HalfToFloat(FloatToHalf(scale)) != scale) ++imported.num_rounded_scales;
    }
    if (model.format.symmetric) matrix.zero_points.clear();
    absl::StatusOr<PackedTensor> packed =
        Pack(matrix.rows, matrix.cols, scheme.bits, matrix.group_size, model.format.symmetric,
             matrix.codes, matrix.scales, matrix.zero_points);
    if (!packed.ok()) {
      return absl::DataLossError(absl::StrCat(name, ": ", packed.status().message()));
    }
    model.matrices[name] = *std::move(packed);
    matrix = {};
  }
  for (const TensorSpec& spec : specs) {
    if (spec.kind == TensorSpec::Kind::kVector) {
      ASSIGN_OR_RETURN(const TensorView view, checkpoint->Tensor(spec.name));
      ASSIGN_OR_RETURN(model.vectors[spec.name], LoadFloats(view, spec.name));
    } else if (spec.kind != TensorSpec::Kind::kBlockMatrix) {
      RETURN_IF_ERROR(AddOuterMatrix(*checkpoint, spec, model));
    }
  }
  ASSIGN_OR_RETURN(imported.source_hex, checkpoint->DigestHex());
  return imported;
}

}  // namespace quern

#ifndef QUERN_CORE_ARTIFACT_PACK_H_
#define QUERN_CORE_ARTIFACT_PACK_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "core/artifact/packed_model.h"

namespace quern {

// Packs codes [rows * cols], scales [rows * groups] and zero points [rows * groups] (empty when
// symmetric) into the canonical layout. Scales are rounded to half floats.
// INVALID_ARGUMENT naming row and column when a code or zero point is outside [0, 2^bits - 1] or a
// scale is not finite as a half float: a field that is too wide would overwrite its neighbours.
absl::StatusOr<PackedTensor> Pack(int rows, int cols, int bits, int group_size, bool symmetric,
                                  absl::Span<const uint8_t> codes, absl::Span<const float> scales,
                                  absl::Span<const uint8_t> zero_points);

// `values` [rows * cols] as half floats. INVALID_ARGUMENT naming `name` when one is too large.
absl::StatusOr<HalfTensor> ToHalfTensor(absl::Span<const float> values, int rows, int cols,
                                        absl::string_view name);

// The inverse: codes [rows * cols].
std::vector<uint8_t> UnpackCodes(const PackedTensor& tensor);
// Zero points [rows * groups]; all 2^(bits - 1) when symmetric.
std::vector<uint8_t> UnpackZeroPoints(const PackedTensor& tensor);
// Scales [rows * groups].
std::vector<float> UnpackScales(const PackedTensor& tensor);
// (code - zero_point) * scale in float, [rows * cols].
std::vector<float> Dequantize(const PackedTensor& tensor);

// The same codes and zero points (shared, not copied) under other scales [rows * groups].
absl::StatusOr<PackedTensor> WithScales(const PackedTensor& tensor, absl::Span<const float> scales);

// Round-to-nearest by minimum and maximum of each group (zero always representable), float math,
// ties to even:
// asymmetric: scale = (max - min) / (2^bits - 1), zero_point = clamp(round(-min / scale));
// symmetric: the signed full range, scale = the value of largest magnitude / -2^(bits - 1).
// Codes and zero points are taken with the scale as stored (a half float, never nearer to zero than
// 2^-24, so that dividing by a scale is always defined).
// INVALID_ARGUMENT naming row and column when a weight is not finite, or row and group when the
// scale is too large for a half float.
absl::StatusOr<PackedTensor> RoundToNearest(absl::Span<const float> weights, int rows, int cols,
                                            int bits, int group_size, bool symmetric);

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_PACK_H_

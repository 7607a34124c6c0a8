#ifndef QUERN_SERVICES_QUANTIZER_TOKEN_FILE_H_
#define QUERN_SERVICES_QUANTIZER_TOKEN_FILE_H_

// Token ids kept with a job, so that a run that goes on sees the ids of the one before.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>
#include <vector>

namespace quern {

using TokenSequences = std::vector<std::vector<int32_t>>;

// Writes `sequences` [n][length], all of one length, durably as a safetensors file under `key`,
// which says what they were made from.
absl::Status SaveTokens(absl::string_view path, absl::string_view key,
                        const TokenSequences& sequences);

// NOT_FOUND when there is no file, FAILED_PRECONDITION when it has another key or shape, DATA_LOSS
// when it is damaged.
absl::StatusOr<TokenSequences> LoadTokens(absl::string_view path, absl::string_view key,
                                          int num_sequences, int length);

// SHA-256, hex, over the ids as little-endian 32-bit integers and their shape.
std::string DigestOf(const TokenSequences& sequences);

}  // namespace quern

#endif  // QUERN_SERVICES_QUANTIZER_TOKEN_FILE_H_

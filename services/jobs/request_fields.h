#ifndef QUERN_SERVICES_JOBS_REQUEST_FIELDS_H_
#define QUERN_SERVICES_JOBS_REQUEST_FIELDS_H_

// Checks of single request fields. Each failure is INVALID_ARGUMENT and names the field.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/map.h>

#include <cstdint>
#include <string>

#include "core/base/sha256.h"

namespace quern {

// "quantizationJobs/{id}" -> id.
absl::StatusOr<std::string> ParseJobName(absl::string_view field, absl::string_view name);
std::string JobName(absl::string_view id);

// "artifacts/{64 hex digits}" -> digest.
absl::StatusOr<Digest> ParseArtifactName(absl::string_view field, absl::string_view name);
std::string ArtifactName(absl::string_view id);

// 1 to `max_size` letters, digits, '.', '_' or '-'.
absl::Status CheckIdentifier(absl::string_view field, absl::string_view value, size_t max_size);

// At most `max_bytes` and no control characters, '\n' and '\t' excepted when `multi_line`.
absl::Status CheckText(absl::string_view field, absl::string_view value, size_t max_bytes,
                       bool multi_line = false);

// At most 16; keys [a-z][a-z0-9_-]{0,62}, values at most 255 bytes of text.
absl::Status CheckLabels(absl::string_view field,
                         const google::protobuf::Map<std::string, std::string>& labels);

// 0 means 50, more than 1000 means 1000; negative is refused.
absl::StatusOr<int> CheckPageSize(int page_size);

// A relative path with '/' separators, no '.' or '..' segment, letters, digits, '.', '_' and '-'.
absl::Status CheckArtifactPath(absl::string_view field, absl::string_view path);

// A valid duration in [0, max]; more becomes max.
absl::StatusOr<absl::Duration> CheckDuration(absl::string_view field,
                                             const google::protobuf::Duration& duration,
                                             absl::Duration max);

}  // namespace quern

#endif  // QUERN_SERVICES_JOBS_REQUEST_FIELDS_H_

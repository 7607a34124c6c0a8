#include "services/jobs/request_fields.h"

#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <absl/strings/strip.h>

#include <algorithm>

namespace quern {
namespace {

constexpr absl::string_view kJobPrefix = "quantizationJobs/";
constexpr absl::string_view kArtifactPrefix = "artifacts/";
constexpr size_t kMaxLabels = 16;
constexpr size_t kMaxQuotedBytes = 64;

// A found value for a message: short, and without control characters.
std::string Quote(absl::string_view value) {
  std::string quoted(value.substr(0, kMaxQuotedBytes));
  for (char& c : quoted) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = '?';
  }
  return absl::StrCat("'", quoted, value.size() > kMaxQuotedBytes ? "..." : "", "'");
}

bool IsIdentifier(absl::string_view value, size_t max_size) {
  if (value.empty() || value.size() > max_size) return false;
  return std::all_of(value.begin(), value.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
}

bool IsLabelKey(absl::string_view key) {
  if (key.empty() || key.size() > 63 || !absl::ascii_islower(static_cast<unsigned char>(key[0]))) {
    return false;
  }
  return std::all_of(key.begin(), key.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return absl::ascii_islower(byte) || absl::ascii_isdigit(byte) || c == '_' || c == '-';
  });
}

}  // namespace

absl::StatusOr<std::string> ParseJobName(absl::string_view field, absl::string_view name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, kJobPrefix) || !IsIdentifier(id, 63)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": found ", Quote(name), ", wanted quantizationJobs/{id}"));
  }
  return std::string(id);
}

std::string JobName(absl::string_view id) { return absl::StrCat(kJobPrefix, id); }

absl::StatusOr<Digest> ParseArtifactName(absl::string_view field, absl::string_view name) {
  absl::string_view id = name;
  if (absl::ConsumePrefix(&id, kArtifactPrefix)) {
    absl::StatusOr<Digest> digest = Digest::Parse(id);
    if (digest.ok()) return digest;
  }
  return absl::InvalidArgumentError(absl::StrCat(field, ": found ", Quote(name),
                                                 ", wanted artifacts/{64 lower-case hex digits}"));
}

std::string ArtifactName(absl::string_view id) { return absl::StrCat(kArtifactPrefix, id); }

absl::Status CheckIdentifier(absl::string_view field, absl::string_view value, size_t max_size) {
  if (IsIdentifier(value, max_size)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": found ", Quote(value), ", wanted 1 to ",
                                                 max_size, " letters, digits, '.', '_' or '-'"));
}

absl::Status CheckText(absl::string_view field, absl::string_view value, size_t max_bytes,
                       bool multi_line) {
  if (value.size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", value.size(), " bytes, at most ", max_bytes, " are taken"));
  }
  for (char c : value) {
    if (multi_line && (c == '\n' || c == '\t')) continue;
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": control characters are not taken, found ", Quote(value)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLabels(absl::string_view field,
                         const google::protobuf::Map<std::string, std::string>& labels) {
  if (labels.size() > kMaxLabels) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", labels.size(), " labels, at most ", kMaxLabels, " are taken"));
  }
  for (const auto& [key, value] : labels) {
    if (!IsLabelKey(key)) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": key ", Quote(key),
                       ", wanted a lower-case letter, then up to 62 of a-z, 0-9, '_' and '-'"));
    }
    absl::Status status = CheckText(absl::StrCat(field, "[", key, "]"), value, 255);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<int> CheckPageSize(int page_size) {
  if (page_size < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_size: found ", page_size, ", wanted 0 (50) to 1000"));
  }
  return page_size == 0 ? 50 : std::min(page_size, 1000);
}

absl::Status CheckArtifactPath(absl::string_view field, absl::string_view path) {
  bool good = !path.empty() && path.size() <= 255;
  for (absl::string_view segment : absl::StrSplit(path, '/')) {
    good = good && IsIdentifier(segment, 255) && segment != "." && segment != "..";
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ": found ", Quote(path), ", wanted a relative path of plain names without '..'"));
}

absl::StatusOr<absl::Duration> CheckDuration(absl::string_view field,
                                             const google::protobuf::Duration& duration,
                                             absl::Duration max) {
  const bool valid =
      duration.seconds() >= 0 && duration.nanos() >= 0 && duration.nanos() < 1'000'000'000;
  if (!valid) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": found ", duration.seconds(), " s ",
                                                   duration.nanos(),
                                                   " ns, wanted a duration of 0 or more"));
  }
  return std::min(absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos()), max);
}

}  // namespace quern

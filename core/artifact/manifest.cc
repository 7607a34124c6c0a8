#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace quern {
namespace {

constexpr size_t kMaxPathBytes = 256;
constexpr size_t kMaxVersionBytes = 64;
constexpr absl::string_view kScaleDeltaKind = "scale_delta";

absl::Status Damaged(absl::string_view where, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(where, ": ", what));
}

// Bytes that we wrote and that do not parse are damage, not a bad request.
absl::Status AsDataLoss(const absl::Status& status) {
  if (status.ok()) return status;
  return absl::DataLossError(status.message());
}

absl::Status CheckKeys(const JsonObject& object, const std::vector<absl::string_view>& keys) {
  for (const auto& [key, value] : object.json().items()) {
    if (std::find(keys.begin(), keys.end(), absl::string_view(key)) == keys.end()) {
      return Damaged(object.where(), absl::StrCat("unknown key \"", key, "\", known are ",
                                                  absl::StrJoin(keys, ", ")));
    }
  }
  for (absl::string_view key : keys) {
    if (!object.Has(key)) return Damaged(object.where(), absl::StrCat("key ", key, " is missing"));
  }
  return absl::OkStatus();
}

// A relative path with plain segments, safe below any directory.
absl::Status CheckPath(absl::string_view path, absl::string_view where) {
  const bool plain = std::all_of(path.begin(), path.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-' || c == '/';
  });
  bool segments = true;
  for (absl::string_view segment : absl::StrSplit(path, '/')) {
    segments = segments && !segment.empty() && segment != "." && segment != "..";
  }
  if (path.size() > kMaxPathBytes || !plain || !segments) {
    return Damaged(where, absl::StrCat("path \"", absl::CEscape(path.substr(0, kMaxPathBytes)),
                                       "\" is not allowed, wanted a relative path of letters, "
                                       "digits, '.', '_', '-' without '..'"));
  }
  return absl::OkStatus();
}

// The files of an artifact: those of a whole model, or the one of a scale delta.
absl::Status CheckFileName(absl::string_view path, bool is_delta, absl::string_view where) {
  if (is_delta) {
    if (path == kScaleDeltaName) return absl::OkStatus();
    return Damaged(where,
                   absl::StrCat("file \"", path, "\" is not part of a scale delta, its file is ",
                                kScaleDeltaName));
  }
  if (path != kWeightsName && path != kTokenizerName && path != kChatTemplateName) {
    return Damaged(where, absl::StrCat("file \"", path, "\" is not part of format version ",
                                       kArtifactFormatVersion, ", its files are ", kWeightsName,
                                       ", ", kTokenizerName, ", ", kChatTemplateName));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadDigest(const JsonObject& object, absl::string_view key) {
  ASSIGN_OR_RETURN(const std::string hex, object.String(key));
  if (const auto digest = Digest::Parse(hex); !digest.ok()) {
    return Damaged(object.where(), absl::StrCat(key, ": ", digest.status().message()));
  }
  return hex;
}

Json FormatToJson(const QuantFormat& format) {
  Json json{{"bits", format.bits},
            {"group_size", format.group_size},
            {"symmetric", format.symmetric},
            {"embedding_bits", format.embedding_bits}};
  if (!format.matrix_bits.empty()) json["matrix_bits"] = format.matrix_bits;
  return json;
}

absl::StatusOr<QuantFormat> FormatFromJson(const JsonObject& json, const ModelConfig& config) {
  std::vector<absl::string_view> keys = {"bits", "group_size", "symmetric", "embedding_bits"};
  const bool has_matrix_bits = json.Has("matrix_bits");
  if (has_matrix_bits) keys.push_back("matrix_bits");
  RETURN_IF_ERROR(CheckKeys(json, keys));
  constexpr int64_t kMax = std::numeric_limits<int>::max();
  QuantFormat format;
  ASSIGN_OR_RETURN(format.bits, json.Int("bits", 0, kMax));
  ASSIGN_OR_RETURN(format.group_size, json.Int("group_size", 0, kMax));
  ASSIGN_OR_RETURN(format.symmetric, json.BoolOr("symmetric", false));
  ASSIGN_OR_RETURN(format.embedding_bits, json.Int("embedding_bits", 0, kMax));
  if (has_matrix_bits) {
    ASSIGN_OR_RETURN(const JsonObject own, json.Object("matrix_bits"));
    for (const auto& [name, value] : own.json().items()) {
      ASSIGN_OR_RETURN(format.matrix_bits[name], own.Int(name, 0, kMax));
    }
  }
  if (absl::Status status = format.ValidateFor(config); !status.ok()) {
    return Damaged(json.where(), status.message());
  }
  return format;
}

absl::StatusOr<Lineage> LineageFromJson(const JsonObject& json) {
  RETURN_IF_ERROR(
      CheckKeys(json, {"checkpoint_digest", "task_digest", "calibration_digest", "quern_version"}));
  Lineage lineage;
  ASSIGN_OR_RETURN(lineage.checkpoint_digest, ReadDigest(json, "checkpoint_digest"));
  ASSIGN_OR_RETURN(lineage.task_digest, ReadDigest(json, "task_digest"));
  ASSIGN_OR_RETURN(lineage.calibration_digest, json.String("calibration_digest"));
  if (!lineage.calibration_digest.empty()) {
    ASSIGN_OR_RETURN(lineage.calibration_digest, ReadDigest(json, "calibration_digest"));
  }
  ASSIGN_OR_RETURN(lineage.quern_version, json.String("quern_version"));
  if (lineage.quern_version.empty() || lineage.quern_version.size() > kMaxVersionBytes) {
    return Damaged(json.where(), absl::StrCat("quern_version has ", lineage.quern_version.size(),
                                              " bytes, wanted 1 to ", kMaxVersionBytes));
  }
  return lineage;
}

absl::StatusOr<std::vector<ArtifactFileInfo>> FilesFromJson(const Json& array, bool is_delta,
                                                            absl::string_view where) {
  std::vector<ArtifactFileInfo> files;
  for (const Json& item : array) {
    const std::string item_where = absl::StrCat(where, ": files[", files.size(), "]");
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(item, item_where));
    RETURN_IF_ERROR(CheckKeys(object, {"path", "size_bytes", "sha256"}));
    ArtifactFileInfo file;
    ASSIGN_OR_RETURN(file.path, object.String("path"));
    RETURN_IF_ERROR(CheckPath(file.path, item_where));
    RETURN_IF_ERROR(CheckFileName(file.path, is_delta, item_where));
    if (!files.empty() && file.path <= files.back().path) {
      return Damaged(item_where,
                     absl::StrCat("path \"", file.path, "\" after \"", files.back().path,
                                  "\", wanted ascending order, each once"));
    }
    ASSIGN_OR_RETURN(file.size_bytes,
                     object.Int("size_bytes", 1, std::numeric_limits<int64_t>::max()));
    ASSIGN_OR_RETURN(file.sha256, ReadDigest(object, "sha256"));
    files.push_back(std::move(file));
  }
  const absl::string_view weights = is_delta ? kScaleDeltaName : kWeightsName;
  const bool has_weights = std::any_of(files.begin(), files.end(),
                                       [&](const auto& file) { return file.path == weights; });
  if (!has_weights) return Damaged(where, absl::StrCat("files: ", weights, " is missing"));
  return files;
}

absl::StatusOr<Manifest> ManifestFromJson(const JsonObject& root, bool is_delta) {
  std::vector<absl::string_view> keys = {"format_version", "config", "format", "lineage", "files"};
  if (is_delta) keys.insert(keys.end(), {"kind", "base"});
  RETURN_IF_ERROR(CheckKeys(root, keys));
  Manifest manifest;
  if (is_delta) {
    ASSIGN_OR_RETURN(const std::string kind, root.String("kind"));
    if (kind != kScaleDeltaKind) {
      return Damaged(root.where(), absl::StrCat("kind: found \"", absl::CEscape(kind.substr(0, 40)),
                                                "\", wanted ", kScaleDeltaKind));
    }
    ASSIGN_OR_RETURN(manifest.base, ReadDigest(root, "base"));
  }
  ASSIGN_OR_RETURN(const JsonObject config, root.Object("config"));
  ASSIGN_OR_RETURN(manifest.config, ModelConfigFromJson(config.json(), config.where()));
  ASSIGN_OR_RETURN(const JsonObject format, root.Object("format"));
  ASSIGN_OR_RETURN(manifest.format, FormatFromJson(format, manifest.config));
  ASSIGN_OR_RETURN(const JsonObject lineage, root.Object("lineage"));
  ASSIGN_OR_RETURN(manifest.lineage, LineageFromJson(lineage));
  ASSIGN_OR_RETURN(const Json* files, root.Array("files"));
  ASSIGN_OR_RETURN(manifest.files, FilesFromJson(*files, is_delta, root.where()));
  return manifest;
}

}  // namespace

std::string ManifestBytes(const Manifest& manifest) {
  Json files = Json::array();
  for (const ArtifactFileInfo& file : manifest.files) {
    files.push_back(
        {{"path", file.path}, {"size_bytes", file.size_bytes}, {"sha256", file.sha256}});
  }
  const Lineage& lineage = manifest.lineage;
  Json json = {{"format_version", kArtifactFormatVersion},
               {"config", ModelConfigToJson(manifest.config)},
               {"format", FormatToJson(manifest.format)},
               {"lineage",
                {{"checkpoint_digest", lineage.checkpoint_digest},
                 {"task_digest", lineage.task_digest},
                 {"calibration_digest", lineage.calibration_digest},
                 {"quern_version", lineage.quern_version}}},
               {"files", std::move(files)}};
  if (!manifest.base.empty()) {
    json["format_version"] = kScaleDeltaFormatVersion;
    json["kind"] = std::string(kScaleDeltaKind);
    json["base"] = manifest.base;
  }
  return DumpCanonicalJson(json);
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view bytes, absl::string_view where) {
  const auto json = ParseJson(bytes, where, JsonLimits{.max_depth = 8});
  if (!json.ok()) return AsDataLoss(json.status());
  const auto root = JsonObject::Of(*json, where);
  if (!root.ok()) return AsDataLoss(root.status());

  // First of all: a newer version may differ in everything else.
  const auto version = root->Int("format_version", 1, std::numeric_limits<int64_t>::max());
  if (!version.ok()) return AsDataLoss(version.status());
  if (*version > kScaleDeltaFormatVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": format_version is ", *version, ", this program reads up to ",
                     kScaleDeltaFormatVersion,
                     ": the artifact was made by a newer Quern, use that one or newer"));
  }

  auto manifest = ManifestFromJson(*root, *version == kScaleDeltaFormatVersion);
  if (!manifest.ok()) return AsDataLoss(manifest.status());
  if (ManifestBytes(*manifest) != bytes) {
    return Damaged(where, "not in canonical form (sorted keys, no spaces, shortest numbers)");
  }
  return manifest;
}

}  // namespace quern

#include "core/checkpoint/checkpoint.h"

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <filesystem>
#include <system_error>

#include "core/base/status_macros.h"
#include "core/checkpoint/gguf_checkpoint.h"
#include "core/checkpoint/hf_checkpoint.h"

namespace quern {
namespace {

enum class Kind { kGguf, kDirectory };

absl::StatusOr<Kind> KindOf(absl::string_view path) {
  if (path.empty() || path.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError("checkpoint path: empty or with a NUL");
  }
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(std::string(path), error);
  if (status.type() == std::filesystem::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(path, ": no such checkpoint"));
  }
  if (error) return absl::ErrnoToStatus(error.value(), path);
  if (status.type() == std::filesystem::file_type::directory) return Kind::kDirectory;
  if (absl::EndsWithIgnoreCase(path, ".gguf")) return Kind::kGguf;
  return absl::InvalidArgumentError(absl::StrCat(
      path,
      ": wanted a directory with config.json and .safetensors, or a file that ends in .gguf"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenCheckpoint(absl::string_view path,
                                                           const OpenCheckpointOptions& options) {
  if (options.max_position_embeddings < 0) {
    return absl::InvalidArgumentError(absl::StrCat("max_position_embeddings: found ",
                                                   options.max_position_embeddings,
                                                   ", wanted 0 (as declared) or more"));
  }
  ASSIGN_OR_RETURN(const Kind kind, KindOf(path));
  return kind == Kind::kGguf ? OpenGgufCheckpoint(path, options)
                             : OpenHuggingFaceCheckpoint(path, options);
}

absl::StatusOr<ModelConfig> ReadCheckpointConfig(absl::string_view path) {
  ASSIGN_OR_RETURN(const Kind kind, KindOf(path));
  return kind == Kind::kGguf ? ReadGgufConfig(path) : ReadHuggingFaceConfig(path);
}

}  // namespace quern

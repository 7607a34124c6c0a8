#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <system_error>

#include "core/base/file.h"
#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/plan/plan.h"
#include "services/cli/doctor.h"
#include "services/cli/format.h"

namespace quern::cli {
namespace {

namespace fs = std::filesystem;

// A model root is a small tree; a home directory given by mistake is not walked to its end.
constexpr int kMaxDepth = 4;
constexpr int kMaxEntries = 20'000;
constexpr size_t kMaxShown = 20;

struct Walk {
  std::vector<std::string> candidates;                       // relative to the root
  std::vector<std::pair<std::string, std::string>> refused;  // and why
  bool complete = true;
};

bool LooksLikeCheckpoint(const fs::path& path, bool is_directory) {
  if (!is_directory) return absl::EndsWith(path.string(), ".gguf");
  std::error_code ignored;
  return fs::exists(path / "config.json", ignored) ||
         fs::exists(path / "model.safetensors", ignored) ||
         fs::exists(path / "model.safetensors.index.json", ignored);
}

// What looks like a checkpoint at or below `root`.
absl::StatusOr<Walk> FindCandidates(const fs::path& root) {
  Walk walk;
  std::error_code error;
  fs::recursive_directory_iterator entries(root, fs::directory_options::skip_permission_denied,
                                           error);
  int count = 0;
  for (; !error && entries != fs::recursive_directory_iterator(); entries.increment(error)) {
    if (++count > kMaxEntries) {
      walk.complete = false;
      break;
    }
    const fs::path& path = entries->path();
    const std::string relative = path.lexically_relative(root).string();
    std::error_code ignored;
    const bool is_directory = entries->is_directory(ignored);
    if (!LooksLikeCheckpoint(path, is_directory)) {
      if (entries.depth() + 1 >= kMaxDepth) entries.disable_recursion_pending();
      continue;
    }
    entries.disable_recursion_pending();
    // As the services resolve it: a link may lead nowhere, or out of the root.
    const absl::StatusOr<std::string> real = ResolveBeneath(root.string(), relative);
    if (real.ok()) {
      walk.candidates.push_back(relative);
    } else {
      walk.refused.emplace_back(relative, std::string(real.status().message()));
    }
  }
  if (error) return absl::ErrnoToStatus(error.value(), root.string());
  std::sort(walk.candidates.begin(), walk.candidates.end());
  return walk;
}

struct Opened {
  std::string description;
  Needs needs;
};

// Opens it as the services do and plans a job of the default settings.
absl::StatusOr<Opened> OpenBelow(const fs::path& root, const std::string& relative) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                   OpenCheckpoint((root / relative).string()));
  Task task;
  task.checkpoint_path = relative;
  const Machine machine{.num_threads = AvailableCpus(),
                        .activation_memory_bytes = AvailableMemoryBytes() / 2,
                        .source_bytes_per_weight =
                            SourceBytesPerWeight(checkpoint->config(), checkpoint->weight_bytes())};
  ASSIGN_OR_RETURN(const PlanResult plan, MakePlan(task, checkpoint->config(), machine));
  Opened opened;
  opened.needs.checkpoint = relative;
  for (const StageCost& stage : plan.stages) {
    opened.needs.memory_bytes = std::max(opened.needs.memory_bytes, stage.host_memory_bytes);
    opened.needs.disk_bytes = std::max(opened.needs.disk_bytes, stage.disk_bytes);
  }
  // The finished artifact lies in the worker's directory and in quern-jobs' at once.
  opened.needs.disk_bytes += plan.artifact_size_bytes;
  opened.description =
      absl::StrCat(checkpoint->config().model_type, ", ", FormatBytes(checkpoint->weight_bytes()),
                   "; to 4 bits it takes ", FormatBytes(opened.needs.memory_bytes), " of memory");
  return opened;
}

}  // namespace

Needs CheckCheckpoints(const std::string& model_root, Findings& findings) {
  Needs most;
  if (model_root.empty()) {
    findings.Skip("model root", "not known", "name it with --model-root");
    return most;
  }
  const absl::StatusOr<Walk> walk = FindCandidates(model_root);
  if (!walk.ok()) {
    findings.Problem("model root", std::string(walk.status().message()), "a directory to read",
                     "check the path and who may read it");
    return most;
  }
  size_t accepted = 0;
  const auto refuse = [&findings](const std::string& name, absl::string_view why) {
    findings.Warn(name, why, "a checkpoint that quern reads",
                  "repair or convert it, or take it out of the model root");
  };
  for (const std::string& name : walk->candidates) {
    const absl::StatusOr<Opened> opened = OpenBelow(model_root, name);
    if (!opened.ok()) {
      refuse(name, std::string(opened.status().message()));
      continue;
    }
    if (++accepted <= kMaxShown) findings.Ok(name, opened->description);
    if (opened->needs.memory_bytes > most.memory_bytes) most = opened->needs;
  }
  for (const auto& [name, why] : walk->refused) refuse(name, why);
  if (accepted > kMaxShown) {
    findings.Ok("more", absl::StrCat(accepted - kMaxShown, " more checkpoints can be read"));
  }
  if (!walk->complete) {
    findings.Warn("model root",
                  absl::StrCat(model_root, " holds more than ", FormatCount(kMaxEntries),
                               " files; the rest is unread"),
                  "a directory with checkpoints only", "give them a directory of their own");
  } else if (accepted == 0) {
    findings.Warn("model root", absl::StrCat("no checkpoint below ", model_root),
                  "Hugging Face directories or .gguf files",
                  "put one there, or name another directory with --model-root");
  }
  return most;
}

}  // namespace quern::cli

#include "services/quantizer/run_context.h"

#include <absl/strings/str_cat.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>

#include <filesystem>

#include "core/base/error_reason.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/text_file.h"

namespace quern {
namespace {

constexpr size_t kMaxTaskBytes = 1 << 20;
constexpr size_t kMaxResultBytes = 16 << 20;

}  // namespace

absl::Status Prefixed(const absl::Status& status, absl::string_view where) {
  absl::Status prefixed(status.code(), absl::StrCat(where, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { prefixed.SetPayload(url, payload); });
  return prefixed;
}

int64_t SizeOf(const Manifest& manifest) {
  auto bytes = static_cast<int64_t>(ManifestBytes(manifest).size());
  for (const ArtifactFileInfo& file : manifest.files) bytes += file.size_bytes;
  return bytes;
}

RunContext::RunContext(const QuantizerConfig& config, EventWriter& events,
                       Cancellation& cancellation, Clock& clock)
    : config_(config),
      num_threads_(config.num_threads > 0 ? config.num_threads : AvailableCpus()),
      events_(events),
      cancellation_(cancellation),
      progress_(clock, events) {}

absl::StatusOr<std::string> RunContext::Open() {
  // Before any other use of LibTorch.
  absl::StatusOr<DeviceInfo> device = FindDevice(config_.device);
  if (!device.ok()) return WithReason(device.status(), reason::kDeviceNotAvailable);
  device_ = *std::move(device);
  ASSIGN_OR_RETURN(product_rates_, MeasureProductRates(config_.device, num_threads_));
  events_.Device(device_, product_rates_);
  progress_.Report(Stage::kLoading, 0, 1);
  RETURN_IF_ERROR(LockWorkDirectory());
  return ReadFile(config_.task_path, kMaxTaskBytes);
}

absl::Status RunContext::LockWorkDirectory() {
  RETURN_IF_ERROR(CreateDirectories(config_.work_directory));
  const std::string path = Work("lock");
  lock_ = FileDescriptor(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (lock_.get() < 0) return absl::ErrnoToStatus(errno, path);
  if (flock(lock_.get(), LOCK_EX | LOCK_NB) == 0) return absl::OkStatus();
  if (errno != EWOULDBLOCK) return absl::ErrnoToStatus(errno, path);
  return WithReason(absl::FailedPreconditionError(absl::StrCat(
                        config_.work_directory, ": another quern-quantizer works here")),
                    reason::kWorkDirectoryInUse);
}

absl::StatusOr<std::string> RunContext::Resolve(absl::string_view root,
                                                absl::string_view path) const {
  absl::StatusOr<std::string> resolved = ResolveBeneath(root, path);
  if (!resolved.ok() && absl::IsInvalidArgument(resolved.status())) {
    return WithReason(resolved.status(), reason::kInvalidTask);
  }
  return resolved;
}

int64_t RunContext::ActivationMemoryBytes() const {
  if (config_.activation_memory_mib > 0) return int64_t{config_.activation_memory_mib} << 20;
  return device_.memory_bytes / 2;
}

absl::Status RunContext::CheckDisk(const std::vector<StageCost>& stages) const {
  ASSIGN_OR_RETURN(int64_t bytes, FreeDiskBytes(config_.work_directory));
  // What an earlier run of the job left there it need not write again.
  std::error_code error;
  for (auto entry = std::filesystem::recursive_directory_iterator(config_.work_directory, error);
       !error && entry != std::filesystem::recursive_directory_iterator(); entry.increment(error)) {
    std::error_code ignored;  // of what is no file
    const auto size = static_cast<int64_t>(entry->file_size(ignored));
    if (!ignored) bytes += size;
  }
  return WithReason(quern::CheckDisk(stages, bytes), reason::kOutOfDisk);
}

Machine RunContext::ThisMachine(int source_bytes_per_weight) const {
  return {.num_threads = num_threads_,
          .memory_bytes = AvailableMemoryBytes(),
          .device_memory_bytes = device_.name == "cpu" ? 0 : device_.memory_bytes,
          .activation_memory_bytes = ActivationMemoryBytes(),
          .gflops = product_rates_.float32,
          .bfloat16_gflops = product_rates_.bfloat16,
          .source_bytes_per_weight = source_bytes_per_weight};
}

QuantizeOptions RunContext::TrainingOptions() {
  return {.work_directory = Work("training"),
          .num_threads = num_threads_,
          .device = config_.device,
          .activation_memory_bytes = ActivationMemoryBytes(),
          .on_progress =
              [this](const QuantizeProgress& progress) {
                progress_.Report(progress.stage, progress.completed, progress.total, progress.loss);
              },
          .cancelled = [this] { return cancellation_.requested(); }};
}

absl::StatusOr<std::vector<EvaluationText>> RunContext::ReadEvaluationText(
    const EvaluationData& data, const Tokenizer& tokenizer) const {
  std::vector<EvaluationText> texts;
  if (data.path.empty()) return texts;
  const auto read = [&]() -> absl::StatusOr<EvaluationText> {
    ASSIGN_OR_RETURN(const std::string path, Resolve(config_.data_root, data.path));
    ASSIGN_OR_RETURN(const std::string text, ReadText(path));
    const std::string name = std::filesystem::path(data.path).filename();
    return ChunkText(tokenizer, name, text, data.chunk_tokens, data.max_chunk_count);
  };
  absl::StatusOr<EvaluationText> text = read();
  if (!text.ok()) {
    return WithReason(Prefixed(text.status(), "evaluation.path"), reason::kEvaluationInvalid);
  }
  texts.push_back(*std::move(text));
  return texts;
}

bool RunContext::RepeatResult(absl::string_view wanted_key) {
  const auto repeat = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string bytes, ReadFile(Work("result.json"), kMaxResultBytes));
    ASSIGN_OR_RETURN(const Json json, ParseJson(bytes, "result.json"));
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, "result.json"));
    ASSIGN_OR_RETURN(const std::string key, object.String("key"));
    if (key != wanted_key) return absl::NotFoundError("made for another task");
    ASSIGN_OR_RETURN(const std::string id, object.String("artifact"));
    ASSIGN_OR_RETURN(const JsonObject evaluation, object.Object("evaluation"));
    RETURN_IF_ERROR(VerifyArtifact(Work("artifact"), id).status());
    LOG(INFO) << "result is there already artifact=" << id;
    events_.Result(id, std::filesystem::absolute(Work("artifact")).string(), evaluation.json());
    return absl::OkStatus();
  };
  const absl::Status status = repeat();
  if (!status.ok() && !absl::IsNotFound(status)) {
    LOG(WARNING) << "an earlier result cannot be used: " << status.message();
  }
  return status.ok();
}

absl::Status RunContext::KeepArtifact(
    absl::FunctionRef<absl::Status(const std::string& directory)> write) {
  progress_.Report(Stage::kPacking, 0, 1);
  const std::string staged = Work("artifact.tmp");
  const std::string final = Work("artifact");
  RETURN_IF_ERROR(RemoveTree(staged));
  RETURN_IF_ERROR(write(staged));
  // A complete directory takes the name in one step; a half one never has it.
  RETURN_IF_ERROR(RemoveTree(final));
  if (rename(staged.c_str(), final.c_str()) != 0) return absl::ErrnoToStatus(errno, final);
  RETURN_IF_ERROR(SyncDirectory(config_.work_directory));
  progress_.Report(Stage::kPacking, 1, 1);
  return cancellation_.Check();
}

absl::Status RunContext::Finish(absl::string_view key, const std::string& artifact_id,
                                const Json& report) {
  RETURN_IF_ERROR(WriteFileDurably(
      Work("result.json"),
      DumpCanonicalJson(
          {{"key", std::string(key)}, {"artifact", artifact_id}, {"evaluation", report}})));
  // Nothing needs it any more, and it is as large as the artifact.
  RETURN_IF_ERROR(RemoveTree(Work("training")));
  LOG(INFO) << "done artifact=" << artifact_id;
  events_.Result(artifact_id, std::filesystem::absolute(Work("artifact")).string(), report);
  return absl::OkStatus();
}

}  // namespace quern

#include "services/quantizer/run.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/base/error_reason.h"
#include "core/base/log.h"
#include "core/base/machine.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/eval/evaluate.h"
#include "core/plan/plan.h"
#include "core/quant/quantize.h"
#include "services/quantizer/calibration.h"
#include "services/quantizer/errors.h"
#include "services/quantizer/evaluation.h"
#include "services/quantizer/progress.h"
#include "services/quantizer/text_file.h"

namespace quern {
namespace {

constexpr size_t kMaxTaskBytes = 1 << 20;
constexpr size_t kMaxResultBytes = 16 << 20;

absl::Status CheckpointError(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
      return WithReason(std::move(status), reason::kCheckpointNotFound);
    case absl::StatusCode::kDataLoss:
      return WithReason(std::move(status), reason::kCheckpointDamaged);
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnimplemented:
      return WithReason(std::move(status), reason::kCheckpointUnsupported);
    default:
      return status;
  }
}

// The status with `where` before its message, code and payloads kept.
absl::Status Prefixed(const absl::Status& status, absl::string_view where) {
  absl::Status prefixed(status.code(), absl::StrCat(where, ": ", status.message()));
  status.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& payload) { prefixed.SetPayload(url, payload); });
  return prefixed;
}

Machine ThisMachine(const DeviceInfo& device, int num_threads, const Checkpoint& checkpoint) {
  // Measured on two cores of a 2021 server; a GPU of the same year.
  constexpr double kGflopsOfThread = 40;
  constexpr double kGflopsOfGpu = 20'000;
  return {.num_threads = num_threads,
          .memory_bytes = AvailableMemoryBytes(),
          .gflops = device.name == "cuda" ? kGflopsOfGpu : kGflopsOfThread * num_threads,
          .source_bytes_per_weight =
              SourceBytesPerWeight(checkpoint.config(), checkpoint.weight_bytes())};
}

class Run {
 public:
  Run(const QuantizerConfig& config, EventWriter& events, Cancellation& cancellation, Clock& clock)
      : config_(config),
        num_threads_(config.num_threads > 0 ? config.num_threads : AvailableCpus()),
        events_(events),
        cancellation_(cancellation),
        progress_(clock, events) {}

  absl::Status Execute();

 private:
  absl::Status Open();
  absl::Status LockWorkDirectory();
  absl::Status OpenSource();
  absl::Status MakeThePlan();
  absl::Status ReadEvaluationText();
  absl::StatusOr<std::string> Resolve(absl::string_view root, absl::string_view path) const;
  absl::StatusOr<std::shared_ptr<const Tokenizer>> SourceTokenizer() const;

  // Whether result.json was there with the artifact it names, and has been reported.
  bool RepeatResult();
  absl::Status Calibrate();
  absl::StatusOr<TokenSequences> MakeCalibration();
  absl::Status Train();
  absl::StatusOr<LoadedArtifact> LoadOwnArtifact() const;
  absl::Status Publish(const PackedModel& model);
  absl::Status EvaluateAndReport();
  Lineage MakeLineage() const;

  QuantizeOptions TrainingOptions();
  std::string Work(absl::string_view name) const {
    return absl::StrCat(config_.work_directory, "/", name);
  }

  const QuantizerConfig& config_;
  const int num_threads_;
  EventWriter& events_;
  Cancellation& cancellation_;
  ProgressReporter progress_;

  FileDescriptor lock_;
  DeviceInfo device_;
  Task task_;  // resolved
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::string checkpoint_digest_;
  // SHA-256 over everything that files kept in the work directory depend on.
  std::string key_;
  std::vector<EvaluationText> texts_;
  TokenSequences calibration_;
};

absl::Status Run::Execute() {
  RETURN_IF_ERROR(Open());
  if (RepeatResult()) return absl::OkStatus();
  RETURN_IF_ERROR(Calibrate());
  if (!LoadOwnArtifact().ok()) RETURN_IF_ERROR(Train());
  return EvaluateAndReport();
}

absl::Status Run::Open() {
  // Before any other use of LibTorch.
  absl::StatusOr<DeviceInfo> device = FindDevice(config_.device);
  if (!device.ok()) return WithReason(device.status(), reason::kDeviceNotAvailable);
  device_ = *std::move(device);
  events_.Device(device_);
  progress_.Report(Stage::kLoading, 0, 1);
  RETURN_IF_ERROR(LockWorkDirectory());

  ASSIGN_OR_RETURN(const std::string json, ReadFile(config_.task_path, kMaxTaskBytes));
  absl::StatusOr<Task> task = ParseTask(json);
  if (!task.ok()) return WithReason(task.status(), reason::kInvalidTask);
  task_ = *std::move(task);
  RETURN_IF_ERROR(OpenSource());
  RETURN_IF_ERROR(MakeThePlan());
  RETURN_IF_ERROR(ReadEvaluationText());
  progress_.Report(Stage::kLoading, 1, 1);
  return cancellation_.Check();
}

absl::Status Run::LockWorkDirectory() {
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

absl::StatusOr<std::string> Run::Resolve(absl::string_view root, absl::string_view path) const {
  absl::StatusOr<std::string> resolved = ResolveBeneath(root, path);
  if (!resolved.ok() && absl::IsInvalidArgument(resolved.status())) {
    return WithReason(resolved.status(), reason::kInvalidTask);
  }
  return resolved;
}

absl::Status Run::OpenSource() {
  absl::StatusOr<std::string> path = Resolve(config_.model_root, task_.checkpoint_path);
  if (!path.ok()) return CheckpointError(Prefixed(path.status(), "checkpoint.path"));
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = OpenCheckpoint(*path);
  if (!checkpoint.ok()) return CheckpointError(checkpoint.status());
  checkpoint_ = *std::move(checkpoint);
  absl::StatusOr<std::string> digest = checkpoint_->DigestHex();
  if (!digest.ok()) return CheckpointError(digest.status());
  checkpoint_digest_ = *std::move(digest);
  if (!task_.checkpoint_digest.empty() && task_.checkpoint_digest != checkpoint_digest_) {
    return WithReason(
        absl::FailedPreconditionError(
            absl::StrCat("checkpoint ", task_.checkpoint_path, ": digest is ", checkpoint_digest_,
                         ", the task wants ", task_.checkpoint_digest, "; the files were changed")),
        reason::kCheckpointChanged);
  }
  return absl::OkStatus();
}

absl::Status Run::MakeThePlan() {
  absl::StatusOr<PlanResult> plan =
      MakePlan(task_, checkpoint_->config(), ThisMachine(device_, num_threads_, *checkpoint_));
  if (!plan.ok()) {
    if (absl::IsInvalidArgument(plan.status()))
      return WithReason(plan.status(), reason::kInvalidTask);
    return plan.status();
  }
  task_ = std::move(plan->resolved);
  key_ = Sha256Hex(DumpCanonicalJson({{"task", TaskToJson(task_)},
                                      {"checkpoint", checkpoint_digest_},
                                      {"threads", num_threads_},
                                      {"device", device_.name},
                                      {"quern_version", QUERN_VERSION}}));
  progress_.SetPlan(std::move(plan->stages));
  LOG(INFO) << "planned method=" << MethodName(task_.method) << " bits=" << task_.format.bits
            << " artifact_bytes=" << plan->artifact_size_bytes << " estimate="
            << absl::FormatDuration(absl::Trunc(progress_.Remaining(), absl::Seconds(1)));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> Run::SourceTokenizer() const {
  if (checkpoint_->tokenizer_json().empty()) {
    return WithReason(absl::FailedPreconditionError(
                          "the checkpoint has no tokenizer.json, so text cannot become tokens"),
                      reason::kCheckpointUnsupported);
  }
  absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer =
      Tokenizer::FromJson(checkpoint_->tokenizer_json());
  if (!tokenizer.ok()) return CheckpointError(tokenizer.status());
  return tokenizer;
}

// Before hours of training, not after.
absl::Status Run::ReadEvaluationText() {
  if (task_.evaluation_path.empty()) return absl::OkStatus();
  const auto read = [&]() -> absl::StatusOr<EvaluationText> {
    ASSIGN_OR_RETURN(const std::string path, Resolve(config_.data_root, task_.evaluation_path));
    ASSIGN_OR_RETURN(const std::string text, ReadText(path));
    ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, SourceTokenizer());
    const std::string name = std::filesystem::path(task_.evaluation_path).filename();
    return ChunkText(*tokenizer, name, text, task_.evaluation_chunk_tokens,
                     task_.evaluation_max_chunk_count);
  };
  absl::StatusOr<EvaluationText> text = read();
  if (!text.ok()) {
    return WithReason(Prefixed(text.status(), "evaluation.path"), reason::kEvaluationInvalid);
  }
  texts_.push_back(*std::move(text));
  return absl::OkStatus();
}

bool Run::RepeatResult() {
  const auto repeat = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const std::string bytes, ReadFile(Work("result.json"), kMaxResultBytes));
    ASSIGN_OR_RETURN(const Json json, ParseJson(bytes, "result.json"));
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, "result.json"));
    ASSIGN_OR_RETURN(const std::string key, object.String("key"));
    if (key != key_) return absl::NotFoundError("made for another task");
    ASSIGN_OR_RETURN(const std::string id, object.String("artifact"));
    ASSIGN_OR_RETURN(const JsonObject evaluation, object.Object("evaluation"));
    RETURN_IF_ERROR(LoadArtifact(Work("artifact"), id).status());
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

absl::Status Run::Calibrate() {
  const CalibrationShape shape = CalibrationShapeOf(task_);
  if (shape.num_sequences == 0) return absl::OkStatus();
  const int64_t tokens = int64_t{shape.num_sequences} * shape.length_tokens;
  const std::string path = Work("calibration.safetensors");
  absl::StatusOr<TokenSequences> kept =
      LoadTokens(path, key_, shape.num_sequences, shape.length_tokens);
  if (kept.ok()) {
    calibration_ = *std::move(kept);
  } else {
    if (!absl::IsNotFound(kept.status())) {
      LOG(WARNING) << "calibration is made again: " << kept.status().message();
    }
    progress_.Report(Stage::kCalibrating, 0, tokens);
    ASSIGN_OR_RETURN(calibration_, MakeCalibration());
    RETURN_IF_ERROR(SaveTokens(path, key_, calibration_));
  }
  progress_.Report(Stage::kCalibrating, tokens, tokens);
  return cancellation_.Check();
}

absl::StatusOr<TokenSequences> Run::MakeCalibration() {
  const CalibrationShape shape = CalibrationShapeOf(task_);
  if (task_.calibration_path.empty()) {
    absl::StatusOr<TokenSequences> sampled = SampleCalibration(
        checkpoint_, shape, task_.seed, num_threads_, cancellation_,
        [&](int64_t done, int64_t total) { progress_.Report(Stage::kCalibrating, done, total); });
    if (!sampled.ok()) return CheckpointError(sampled.status());
    return sampled;
  }
  const auto cut = [&]() -> absl::StatusOr<TokenSequences> {
    ASSIGN_OR_RETURN(const std::string path, Resolve(config_.data_root, task_.calibration_path));
    ASSIGN_OR_RETURN(const std::vector<std::string> documents, ReadDocuments(path));
    ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, SourceTokenizer());
    return CutDocuments(*tokenizer, documents, shape, task_.seed, cancellation_);
  };
  absl::StatusOr<TokenSequences> sequences = cut();
  if (!sequences.ok()) {
    return WithReason(Prefixed(sequences.status(), "calibration.path"),
                      reason::kCalibrationInvalid);
  }
  return sequences;
}

QuantizeOptions Run::TrainingOptions() {
  return {.work_directory = Work("training"),
          .num_threads = num_threads_,
          .device = config_.device,
          .on_progress =
              [this](const QuantizeProgress& progress) {
                progress_.Report(progress.stage, progress.completed, progress.total, progress.loss);
              },
          .cancelled = [this] { return cancellation_.requested(); }};
}

absl::Status Run::Train() {
  absl::StatusOr<PackedModel> model =
      Quantize(*checkpoint_, task_, calibration_, TrainingOptions());
  // What the quantizer finds wrong with values is wrong with the files.
  if (!model.ok()) return CheckpointError(model.status());
  return Publish(*model);
}

Lineage Run::MakeLineage() const {
  return {.checkpoint_digest = checkpoint_digest_,
          .task_digest = TaskDigest(task_),
          .calibration_digest = calibration_.empty() ? "" : DigestOf(calibration_),
          .quern_version = QUERN_VERSION};
}

absl::StatusOr<LoadedArtifact> Run::LoadOwnArtifact() const {
  ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadArtifact(Work("artifact")));
  if (artifact.manifest.lineage != MakeLineage()) {
    return absl::FailedPreconditionError("the artifact there is another task's");
  }
  return artifact;
}

absl::Status Run::Publish(const PackedModel& model) {
  progress_.Report(Stage::kPacking, 0, 1);
  const std::string staged = Work("artifact.tmp");
  const std::string final = Work("artifact");
  RETURN_IF_ERROR(RemoveTree(staged));
  RETURN_IF_ERROR(WriteArtifact(model, MakeLineage(), staged).status());
  // A complete directory takes the name in one step; a half one never has it.
  RETURN_IF_ERROR(RemoveTree(final));
  if (rename(staged.c_str(), final.c_str()) != 0) return absl::ErrnoToStatus(errno, final);
  RETURN_IF_ERROR(SyncDirectory(config_.work_directory));
  progress_.Report(Stage::kPacking, 1, 1);
  return cancellation_.Check();
}

absl::Status Run::EvaluateAndReport() {
  progress_.Report(Stage::kEvaluating, 0, 1);
  EvaluationInput input{.source = checkpoint_,
                        .held_out_path = Work("held_out.safetensors"),
                        .key = key_,
                        .seed = task_.seed,
                        .texts = texts_,
                        .num_threads = num_threads_,
                        .on_progress = [&](int64_t done, int64_t total) {
                          progress_.Report(Stage::kEvaluating, done, total);
                        }};
  // Of a round-to-nearest task the result itself is that row.
  if (task_.method != QuantMethod::kRtn) {
    Task rounded{.format = task_.format, .method = QuantMethod::kRtn};
    QuantizeOptions options = TrainingOptions();
    options.on_progress = nullptr;
    ASSIGN_OR_RETURN(PackedModel model, Quantize(*checkpoint_, rounded, {}, options));
    input.models.emplace_back("rtn", std::make_shared<const PackedModel>(std::move(model)));
  }
  ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadOwnArtifact());
  int64_t artifact_bytes = static_cast<int64_t>(ManifestBytes(artifact.manifest).size());
  for (const ArtifactFileInfo& file : artifact.manifest.files) artifact_bytes += file.size_bytes;
  input.models.emplace_back("result",
                            std::make_shared<const PackedModel>(std::move(artifact.model)));
  ASSIGN_OR_RETURN(const std::vector<EvaluationRow> rows,
                   EvaluateModels(std::move(input), cancellation_));
  const Json report = ReportToJson(rows, checkpoint_->weight_bytes(), artifact_bytes);
  RETURN_IF_ERROR(WriteFileDurably(
      Work("result.json"),
      DumpCanonicalJson({{"key", key_}, {"artifact", artifact.id}, {"evaluation", report}})));
  // Nothing needs it any more, and it is as large as the artifact.
  RETURN_IF_ERROR(RemoveTree(Work("training")));
  LOG(INFO) << "done artifact=" << artifact.id << " bytes=" << artifact_bytes;
  events_.Result(artifact.id, std::filesystem::absolute(Work("artifact")).string(), report);
  return absl::OkStatus();
}

}  // namespace

absl::Status RunQuantizer(const QuantizerConfig& config, EventWriter& events,
                          Cancellation& cancellation, Clock& clock) {
  if (absl::Status status = config.Validate(); !status.ok()) {
    return WithReason(std::move(status), reason::kInvalidFlags);
  }
  absl::Status status = Run(config, events, cancellation, clock).Execute();
  // What was interrupted fails in its own words.
  if (!status.ok() && cancellation.requested()) return cancellation.Check();
  return status;
}

}  // namespace quern

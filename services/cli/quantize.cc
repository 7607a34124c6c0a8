// `quern quantize`: submit a job and follow it.

#include <absl/strings/str_cat.h>
#include <google/protobuf/util/json_util.h>
#include <quern/quantization/v1/quantization_service.grpc.pb.h>

#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/submit.h"

namespace quern::cli {
namespace {

namespace quantization_pb = quantization::v1;

// What a model of about 500 million parameters takes at 2 bits, its embedding at 8. Models below
// that lose their coherence at 2 bits unless trained for long.
constexpr int64_t kSmallArtifactBytes = 250'000'000;

struct QuantizeOptions {
  std::string checkpoint;
  int bits = 4;
  int group_size = 64;
  bool symmetric = false;
  int embedding_bits = 8;
  double target_bits = 0;
  std::string method = "BLOCK_AP_E2E_QP";
  std::string preset = "STANDARD";
  std::string calibration;
  int sampled = 0;
  std::string eval_text;
  int eval_chunks = 40;
  int eval_chunk_tokens = 0;
  int64_t seed = 0;
  std::string loss;
  std::string trainable;
  std::string start;
  std::string target;
  quantization_pb::QuantizeTask::ComputeDtype compute_dtype =
      quantization_pb::QuantizeTask::COMPUTE_DTYPE_UNSPECIFIED;
  std::optional<int> block_ap_samples;
  std::optional<int> block_ap_epochs;
  std::optional<int> e2e_samples;
  std::string settings;
  SubmitOptions submit;
};

// What the file sets counts instead of the flags.
absl::Status MergeSettings(const std::string& path, quantization_pb::QuantizeTask& task) {
  constexpr size_t kMaxBytes = 1 << 20;
  ASSIGN_OR_RETURN(const std::string json, ReadFile(path, kMaxBytes));
  quantization_pb::QuantizeTask settings;
  const auto parsed = google::protobuf::util::JsonStringToMessage(json, &settings);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--settings: ", path, ": ", std::string(parsed.message())));
  }
  task.MergeFrom(settings);
  return absl::OkStatus();
}

absl::StatusOr<quantization_pb::CreateQuantizationJobRequest> MakeJobRequest(
    const QuantizeOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(auto request, MakeRequest(options.submit));
  quantization_pb::QuantizeTask& task = *request.mutable_quantization_job()->mutable_quantize();
  ASSIGN_OR_RETURN(*task.mutable_checkpoint()->mutable_path(),
                   context.BelowRoot(options.checkpoint, "model_root"));
  task.mutable_format()->set_bits(options.bits);
  task.mutable_format()->set_group_size(options.group_size);
  task.mutable_format()->set_symmetric(options.symmetric);
  task.mutable_format()->set_embedding_bits(options.embedding_bits);
  quantization_pb::QuantizeTask::Method method;
  quantization_pb::QuantizeTask::Preset preset;
  // CLI11 has checked both against the names.
  if (!quantization_pb::QuantizeTask::Method_Parse(options.method, &method) ||
      !quantization_pb::QuantizeTask::Preset_Parse(options.preset, &preset)) {
    return absl::InvalidArgumentError("--method or --preset: unknown name");
  }
  task.set_method(method);
  task.set_preset(preset);
  task.set_seed(options.seed);
  task.set_target_bits(options.target_bits);
  task.set_compute_dtype(options.compute_dtype);
  if (!options.calibration.empty()) {
    ASSIGN_OR_RETURN(*task.mutable_calibration()->mutable_path(),
                     context.BelowRoot(options.calibration, "data_root"));
    task.mutable_calibration()->set_sampled_count(options.sampled);
  } else if (options.sampled != 0) {
    return absl::InvalidArgumentError(
        "--sampled: goes with --calibration; without it all sequences are sampled");
  }
  if (!options.eval_text.empty()) {
    ASSIGN_OR_RETURN(*task.mutable_evaluation()->mutable_path(),
                     context.BelowRoot(options.eval_text, "data_root"));
    task.mutable_evaluation()->set_chunk_tokens(options.eval_chunk_tokens);
    task.mutable_evaluation()->set_max_chunk_count(options.eval_chunks);
  }
  if (options.block_ap_samples)
    task.mutable_block_ap()->set_sample_count(*options.block_ap_samples);
  if (options.block_ap_epochs) task.mutable_block_ap()->set_epoch_count(*options.block_ap_epochs);
  if (options.e2e_samples) task.mutable_e2e_qp()->set_sample_count(*options.e2e_samples);
  // CLI11 has checked these against the names.
  if (!options.start.empty()) {
    quantization_pb::BlockApSettings::Start start;
    if (!quantization_pb::BlockApSettings::Start_Parse(options.start, &start)) {
      return absl::InvalidArgumentError("--start: unknown name");
    }
    task.mutable_block_ap()->set_start(start);
  }
  if (!options.target.empty()) {
    quantization_pb::BlockApSettings::Target target;
    if (!quantization_pb::BlockApSettings::Target_Parse(options.target, &target)) {
      return absl::InvalidArgumentError("--target: unknown name");
    }
    task.mutable_block_ap()->set_target(target);
  }
  if (!options.loss.empty()) {
    quantization_pb::E2eQpSettings::Loss loss;
    if (!quantization_pb::E2eQpSettings::Loss_Parse(options.loss, &loss)) {
      return absl::InvalidArgumentError("--loss: unknown name");
    }
    task.mutable_e2e_qp()->set_loss(loss);
  }
  if (!options.trainable.empty()) {
    quantization_pb::E2eQpSettings::Trainable trainable;
    if (!quantization_pb::E2eQpSettings::Trainable_Parse(options.trainable, &trainable)) {
      return absl::InvalidArgumentError("--trainable: unknown name");
    }
    task.mutable_e2e_qp()->set_trainable(trainable);
  }
  if (!options.settings.empty()) RETURN_IF_ERROR(MergeSettings(options.settings, task));
  return request;
}

absl::Status RunQuantize(const QuantizeOptions& options, Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const quantization_pb::CreateQuantizationJobRequest request,
                   MakeJobRequest(options, context));
  return SubmitJob(
      request, options.submit, context, interrupt,
      [&](const quantization_pb::QuantizationJob& job) {
        std::cout << job.name() << "  " << options.checkpoint << " to " << options.bits
                  << " bits, group " << options.group_size << ", " << options.method << ", preset "
                  << options.preset << std::endl;
        if (options.bits == 2 && job.plan().artifact_size_bytes() < kSmallArtifactBytes) {
          std::cout << "note: a model this small needs more training at 2 bits; try "
                       "--preset best, or 3 or 4 bits"
                    << std::endl;
        }
      });
}

}  // namespace

void AddQuantize(CLI::App& app, Command& command) {
  auto options = std::make_shared<QuantizeOptions>();
  CLI::App* sub = app.add_subcommand("quantize", "Quantize a checkpoint and follow the job");
  sub->add_option("checkpoint", options->checkpoint,
                  "Hugging Face directory or .gguf file, below the services' --model-root")
      ->required();
  sub->add_option("--bits", options->bits, "of a weight")
      ->check(CLI::IsMember({2, 3, 4, 8}))
      ->capture_default_str();
  sub->add_option("--group-size", options->group_size,
                  "input channels that share a scale; 0: a whole output channel")
      ->check(CLI::IsMember({0, 32, 64, 128}))
      ->capture_default_str();
  sub->add_flag("--symmetric", options->symmetric, "signed scales, no zero points");
  sub->add_option("--embedding-bits", options->embedding_bits, "of the embedding and the head")
      ->check(CLI::IsMember({4, 8, 16}))
      ->capture_default_str();
  const auto names = [](std::vector<std::string> members) {
    return CLI::IsMember(std::move(members), CLI::ignore_case);
  };
  sub->add_option(
         "--target-bits", options->target_bits,
         "mean bits, above --bits: matrices that rounding hurts most get more; 0: all alike")
      ->check(CLI::Range(0.0, 8.0))
      ->capture_default_str();
  sub->add_option("--method", options->method,
                  "round to nearest; choose codes by GPTQ; train block by block; that, then tune "
                  "the scales end "
                  "to end")
      ->transform(names({"RTN", "GPTQ", "AWQ", "BLOCK_AP", "BLOCK_AP_E2E_QP"}))
      ->capture_default_str();
  sub->add_option("--preset", options->preset, "how much time to spend")
      ->transform(names({"QUICK", "STANDARD", "BEST", "REFERENCE"}))
      ->capture_default_str();
  sub->add_option("--calibration", options->calibration,
                  ".txt or .jsonl below the services' --data-root; default: text that the model "
                  "itself samples");
  sub->add_option("--sampled", options->sampled,
                  "of the sequences, as many are sampled from the model itself and lie among the "
                  "text's, after Block-AP's")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  sub->add_option("--eval-text", options->eval_text,
                  "text below --data-root to measure on as well");
  sub->add_option("--eval-chunks", options->eval_chunks, "of --eval-text, from its start")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  sub->add_option("--eval-chunk-tokens", options->eval_chunk_tokens,
                  "0: 512, or the model's context where that is less")
      ->check(CLI::Range(0, 32768))
      ->capture_default_str();
  sub->add_option("--seed", options->seed, "of sampled calibration texts and of their order")
      ->capture_default_str();
  sub->add_option("--loss", options->loss, "of E2E-QP")
      ->transform(names({"DISTILLATION", "CROSS_ENTROPY"}));
  sub->add_option(
         "--trainable", options->trainable,
         "what E2E-QP trains: scales, as published; the norms as well; the weights as well")
      ->transform(names({"SCALES", "SCALES_AND_NORMS", "ALL"}));
  sub->add_option(
         "--start", options->start,
         "where Block-AP starts: each group's whole range; the range with the least error; "
         "that, and codes chosen as by GPTQ")
      ->transform(names({"MIN_MAX", "SEARCH", "GPTQ"}));
  sub->add_option("--target", options->target,
                  "what Block-AP compares a block's output with: the source block's for the "
                  "source's own states, for the quantized model's, or both")
      ->transform(names({"SOURCE_STREAM", "QUANTIZED_STREAM", "BOTH_STREAMS"}));
  AddComputeDtypeOption(*sub, options->compute_dtype);
  sub->add_option("--block-ap-samples", options->block_ap_samples, "instead of the preset's");
  sub->add_option("--block-ap-epochs", options->block_ap_epochs, "instead of the preset's");
  sub->add_option("--e2e-samples", options->e2e_samples, "instead of the preset's");
  sub->add_option("--settings", options->settings,
                  "file with a QuantizeTask as JSON, for what has no flag (blockAp, e2eQp, "
                  "activationDtype, ...); what it sets counts instead of the flags");
  AddSubmitOptions(*sub, options->submit);
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      return RunQuantize(*options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

// quern tune: an artifact's scales learn from instructions.

#include <absl/strings/str_cat.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/submit.h"

namespace quern::cli {
namespace {

namespace quantization_pb = quantization::v1;

struct TuneOptions {
  std::string base;
  std::string data;
  std::optional<int> samples;
  std::optional<int> sequence_length;
  std::optional<int> epochs;
  std::optional<int> batch_size;
  std::optional<double> learning_rate;
  std::optional<int> held_out;
  std::string trainable;
  quantization_pb::QuantizeTask::ComputeDtype compute_dtype =
      quantization_pb::QuantizeTask::COMPUTE_DTYPE_UNSPECIFIED;
  std::string eval_text;
  int eval_chunks = 40;
  int64_t seed = 0;
  SubmitOptions submit;
};

absl::StatusOr<quantization_pb::CreateQuantizationJobRequest> MakeTuneRequest(
    const TuneOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(auto request, MakeRequest(options.submit));
  quantization_pb::TuneTask& task = *request.mutable_quantization_job()->mutable_tune();
  task.set_base(ResourceName("artifacts", options.base));
  ASSIGN_OR_RETURN(*task.mutable_data()->mutable_path(),
                   context.BelowRoot(options.data, "data_root"));
  quantization_pb::TuneSettings& settings = *task.mutable_settings();
  if (options.samples) settings.set_sample_count(*options.samples);
  if (options.sequence_length) settings.set_sequence_length_tokens(*options.sequence_length);
  if (options.epochs) settings.set_epoch_count(*options.epochs);
  if (options.batch_size) settings.set_batch_size(*options.batch_size);
  if (options.learning_rate) settings.set_learning_rate(*options.learning_rate);
  settings.set_compute_dtype(options.compute_dtype);
  if (options.held_out) settings.set_held_out_count(*options.held_out);
  if (!options.trainable.empty()) {
    quantization_pb::E2eQpSettings::Trainable trainable;
    // CLI11 has checked it against the names.
    if (!quantization_pb::E2eQpSettings::Trainable_Parse(options.trainable, &trainable)) {
      return absl::InvalidArgumentError("--trainable: unknown name");
    }
    settings.set_trainable(trainable);
  }
  if (!options.eval_text.empty()) {
    ASSIGN_OR_RETURN(*task.mutable_evaluation()->mutable_path(),
                     context.BelowRoot(options.eval_text, "data_root"));
    task.mutable_evaluation()->set_max_chunk_count(options.eval_chunks);
  }
  task.set_seed(options.seed);
  return request;
}

absl::Status RunTune(const TuneOptions& options, Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto request, MakeTuneRequest(options, context));
  return SubmitJob(request, options.submit, context, interrupt,
                   [&](const quantization_pb::QuantizationJob& job) {
                     const auto& settings = job.tune().resolved();
                     std::cout << job.name() << "  "
                               << job.tune().base().substr(0, sizeof("artifacts/") - 1 + 12)
                               << " on " << options.data << ", at most " << settings.sample_count()
                               << " examples, " << settings.epoch_count() << " epochs" << std::endl;
                   });
}

}  // namespace

void AddTune(CLI::App& app, Command& command) {
  auto options = std::make_shared<TuneOptions>();
  CLI::App* sub = app.add_subcommand(
      "tune", "Tune an artifact's scales on instructions; the result is a scale delta");
  sub->add_option("base", options->base, "artifact, a whole model: its id or artifacts/ID")
      ->required();
  sub->add_option(
         "data", options->data,
         ".jsonl below the services' --data-root: messages, or prompt and response, a line")
      ->required();
  sub->add_option("--samples", options->samples, "examples at most; default 1024")
      ->check(CLI::Range(1, 65536));
  sub->add_option("--sequence-length", options->sequence_length,
                  "tokens of an example at most; default 1024, or the model's context")
      ->check(CLI::Range(8, 32768));
  sub->add_option("--epochs", options->epochs, "default 2")->check(CLI::Range(0, 64));
  sub->add_option("--batch-size", options->batch_size, "examples in a step; default 8")
      ->check(CLI::Range(1, 1024));
  sub->add_option("--learning-rate", options->learning_rate,
                  "relative to the mean scale of each matrix; default 2e-3")
      ->check(CLI::Range(0.0, 1.0));
  sub->add_option("--held-out", options->held_out,
                  "examples to measure on; default a tenth, at most 64")
      ->check(CLI::Range(0, 1024));
  sub->add_option("--trainable", options->trainable, "what is trained: scales, or norms as well")
      ->transform(CLI::IsMember({"SCALES", "SCALES_AND_NORMS"}, CLI::ignore_case));
  AddComputeDtypeOption(*sub, options->compute_dtype);
  sub->add_option("--eval-text", options->eval_text,
                  "text below --data-root to measure base and result on as well");
  sub->add_option("--eval-chunks", options->eval_chunks, "of --eval-text, from its start")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  sub->add_option("--seed", options->seed, "of the order of examples")->capture_default_str();
  AddSubmitOptions(*sub, options->submit);
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      return RunTune(*options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

// quern jobs evaluate: measure a published artifact, where the workers are.

#include <absl/strings/str_cat.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/submit.h"

namespace quern::cli {
namespace {

namespace quantization_pb = quantization::v1;

struct EvaluateOptions {
  std::string artifact;
  std::string reference;
  std::vector<std::string> texts;
  int chunks = 40;
  int chunk_tokens = 0;
  std::vector<std::string> tasks;
  int items = 0;
  SubmitOptions submit;
};

absl::StatusOr<quantization_pb::CreateQuantizationJobRequest> MakeEvaluateRequest(
    const EvaluateOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(auto request, MakeRequest(options.submit));
  quantization_pb::EvaluateTask& task = *request.mutable_quantization_job()->mutable_evaluate();
  task.set_artifact(ResourceName("artifacts", options.artifact));
  if (!options.reference.empty()) {
    ASSIGN_OR_RETURN(*task.mutable_reference()->mutable_path(),
                     context.BelowRoot(options.reference, "model_root"));
  }
  for (const std::string& path : options.texts) {
    quantization_pb::EvaluationData& text = *task.add_texts();
    ASSIGN_OR_RETURN(*text.mutable_path(), context.BelowRoot(path, "data_root"));
    text.set_chunk_tokens(options.chunk_tokens);
    text.set_max_chunk_count(options.chunks);
  }
  for (const std::string& path : options.tasks) {
    quantization_pb::ZeroShotData& data = *task.add_zero_shot();
    ASSIGN_OR_RETURN(*data.mutable_path(), context.BelowRoot(path, "data_root"));
    data.set_max_item_count(options.items);
  }
  return request;
}

absl::Status RunEvaluate(const EvaluateOptions& options, Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto request, MakeEvaluateRequest(options, context));
  return SubmitJob(request, options.submit, context, interrupt,
                   [&](const quantization_pb::QuantizationJob& job) {
                     std::cout << job.name() << "  "
                               << job.evaluate().artifact().substr(0, sizeof("artifacts/") - 1 + 12)
                               << " on " << options.texts.size() << " texts and "
                               << options.tasks.size() << " zero-shot tasks" << std::endl;
                   });
}

}  // namespace

void AddJobsEvaluate(CLI::App& jobs, Command& command) {
  auto options = std::make_shared<EvaluateOptions>();
  CLI::App* sub =
      jobs.add_subcommand("evaluate", "Measure an artifact on texts and zero-shot tasks, as a job");
  sub->add_option("artifact", options->artifact, "its id or artifacts/ID")->required();
  sub->add_option("--reference", options->reference,
                  "checkpoint below the services' --model-root to compare with; default: the base "
                  "of a scale delta, else nothing");
  sub->add_option("--text", options->texts, "text below --data-root; may be given again");
  sub->add_option("--chunks", options->chunks, "of each text, from its start")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  sub->add_option("--chunk-tokens", options->chunk_tokens,
                  "0: 512, or the model's context where that is less")
      ->check(CLI::Range(0, 32768))
      ->capture_default_str();
  sub->add_option("--tasks", options->tasks,
                  ".jsonl below --data-root, in the forms of quern eval; may be given again");
  sub->add_option("--items", options->items, "of each task, from its start; 0: all")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  AddSubmitOptions(*sub, options->submit);
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      return RunEvaluate(*options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

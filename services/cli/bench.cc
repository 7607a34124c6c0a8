// `quern bench model`: how fast a model runs on this machine, in this process.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/local_model.h"

namespace quern::cli {
namespace {

struct BenchOptions {
  std::string model;
  int prompt_tokens = 128;
  int output_tokens = 64;
  int repeat = 3;
  int threads = 0;
};

// Waits for the end of one request; what it says is not looked at.
class WaitingSink final : public TokenSink {
 public:
  void OnTokens(absl::Span<const int32_t>, absl::string_view) override {}
  void OnEnd(absl::StatusOr<GenerationResult> result) override {
    MutexLock lock(&mutex_);
    result_ = std::move(result);
    ended_ = true;
    changed_.Signal();
  }
  bool cancelled() const override { return false; }

  absl::StatusOr<GenerationResult> Wait() {
    MutexLock lock(&mutex_);
    while (!ended_) changed_.Wait(&mutex_);
    return result_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::StatusOr<GenerationResult> result_ ABSL_GUARDED_BY(mutex_) = absl::UnknownError("running");
};

struct Speed {
  double prefill = 0;  // tokens/s
  double decode = 0;
};

absl::StatusOr<Speed> MeasureOnce(Engine& engine, const LocalModel& model,
                                  const BenchOptions& options) {
  GenerationRequest request;
  // Any ids do: the work does not depend on them. Spread, so that embedding rows are not all warm.
  for (int i = 0; i < options.prompt_tokens; ++i) {
    request.prompt.push_back(
        static_cast<int32_t>(int64_t{i} * 7919 % model.info.config.vocab_size));
  }
  request.max_output_tokens = options.output_tokens;
  request.ignore_end_of_text = true;
  const auto sink = std::make_shared<WaitingSink>();
  RETURN_IF_ERROR(engine.Submit(model.handle, std::move(request), sink));
  ASSIGN_OR_RETURN(const GenerationResult result, sink->Wait());
  const double first = absl::ToDoubleSeconds(result.time_to_first_token - result.queue_duration);
  const double rest = absl::ToDoubleSeconds(result.total_duration - result.time_to_first_token);
  return Speed{options.prompt_tokens / first, (result.output_tokens - 1) / rest};
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status RunBench(const BenchOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(const auto engine, MakeLocalEngine(options.threads));
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const LocalModel model, LoadLocalModel(*engine, options.model));
  const absl::Duration load = absl::Now() - start;
  const int context_tokens = model.info.config.max_position_embeddings;
  if (options.prompt_tokens + options.output_tokens > context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-tokens and --output-tokens: ", options.prompt_tokens, " + ",
                     options.output_tokens, " exceed the model's context of ", context_tokens));
  }
  std::vector<double> prefill;
  std::vector<double> decode;
  // One run more, not counted, brings weights and code into the caches.
  for (int i = 0; i <= options.repeat; ++i) {
    ASSIGN_OR_RETURN(const Speed speed, MeasureOnce(*engine, model, options));
    if (i == 0) continue;
    prefill.push_back(speed.prefill);
    decode.push_back(speed.decode);
  }
  if (context.json()) {
    const Json json = {{"model", options.model},
                       {"format", model.format},
                       {"kernel", model.info.kernel},
                       {"weightBytes", model.info.weight_bytes},
                       {"loadSeconds", absl::ToDoubleSeconds(load)},
                       {"promptTokens", options.prompt_tokens},
                       {"outputTokens", options.output_tokens},
                       {"prefillTokensPerSecond", Median(prefill)},
                       {"decodeTokensPerSecond", Median(decode)}};
    std::cout << json.dump() << std::endl;
    return absl::OkStatus();
  }
  std::cout << FormatTable({{"format", "kernel", "weights", "load", "prefill", "decode"},
                            {model.format, model.info.kernel, FormatBytes(model.info.weight_bytes),
                             absl::StrFormat("%.2f s", absl::ToDoubleSeconds(load)),
                             absl::StrFormat("%.1f tokens/s", Median(prefill)),
                             absl::StrFormat("%.1f tokens/s", Median(decode))}},
                           {false, false, true, true, true, true})
            << "prompt of " << options.prompt_tokens << ", output of " << options.output_tokens
            << ", one sequence, median of " << options.repeat << std::endl;
  return absl::OkStatus();
}

}  // namespace

void AddBench(CLI::App& app, Command& command) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* bench = app.add_subcommand("bench", "Measure speed on this machine");
  bench->require_subcommand(1);
  bench->fallthrough();
  CLI::App* sub = bench->add_subcommand("model", "Prefill and decode tokens/s of one sequence");
  sub->add_option("model", options->model, "artifact directory or checkpoint")->required();
  sub->add_option("--prompt-tokens", options->prompt_tokens, "of the prompt")
      ->check(CLI::Range(1, 131072))
      ->capture_default_str();
  sub->add_option("--output-tokens", options->output_tokens, "to generate")
      ->check(CLI::Range(2, 131072))
      ->capture_default_str();
  sub->add_option("--repeat", options->repeat, "runs; the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  sub->add_option("--threads", options->threads, "0: one for each CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunBench(*options, context); };
  });
}

}  // namespace quern::cli

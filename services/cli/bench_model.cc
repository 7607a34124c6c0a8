// `quern bench model`: how fast a model runs on this machine, in this process.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "core/bench/machine_limits.h"
#include "core/bench/synthetic_model.h"
#include "services/cli/bench_commands.h"
#include "services/cli/bench_table.h"
#include "services/cli/format.h"
#include "services/cli/local_model.h"
#include "services/cli/local_requests.h"

namespace quern::cli {
namespace {

struct ModelOptions {
  std::string model;
  std::string shape;
  QuantFormat format;
  std::string kernels;
  Precision precision = Precision::kMixed;
  KvCacheType kv_cache_type = KvCacheType::kFloat16;
  std::vector<int> prompt_tokens = {128};
  std::vector<int> batch = {1};
  int output_tokens = 64;
  int repeat = 3;
  int threads = 0;
  std::string compare;
};

// `batch` requests at once.
absl::StatusOr<LocalSpeed> MeasureOnce(Engine& engine, const LocalModel& model, int prompt_tokens,
                                       int output_tokens, int batch) {
  std::vector<GenerationRequest> requests(batch);
  for (int b = 0; b < batch; ++b) {
    // Any ids do: the work does not depend on them. Spread, so that embedding rows are not all
    // warm, and different for each sequence.
    for (int i = 0; i < prompt_tokens; ++i) {
      requests[b].prompt.push_back(static_cast<int32_t>((int64_t{i} * 7919 + int64_t{b} * 104729) %
                                                        model.info.config.vocab_size));
    }
    requests[b].max_output_tokens = output_tokens;
    requests[b].ignore_end_of_text = true;
  }
  ASSIGN_OR_RETURN(const std::vector<LocalAnswer> answers,
                   GenerateTogether(engine, model.handle, std::move(requests)));
  return SpeedOf(answers);
}

absl::StatusOr<LocalModel> Load(Engine& engine, const ModelOptions& options) {
  const LoadOptions load{.precision = options.precision, .kv_cache_type = options.kv_cache_type};
  if (options.shape.empty()) return LoadLocalModel(engine, options.model, load);
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSource> source,
                   MakeSyntheticModel(options.shape, options.format));
  LocalModel model;
  model.format = absl::StrCat("w", options.format.bits, " g", options.format.group_size);
  ASSIGN_OR_RETURN(model.handle, engine.Load(*source, load));
  ASSIGN_OR_RETURN(model.info, engine.Info(model.handle));
  return model;
}

absl::Status RunBench(const ModelOptions& options, const Context& context) {
  if (options.model.empty() == options.shape.empty()) {
    return absl::InvalidArgumentError("wanted either a model or --shape");
  }
  ASSIGN_OR_RETURN(const auto engine, MakeLocalEngine(options.threads, options.kernels));
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const LocalModel model, Load(*engine, options));
  const absl::Duration load = absl::Now() - start;
  const int context_tokens = model.info.max_context_tokens;
  const int longest = *std::max_element(options.prompt_tokens.begin(), options.prompt_tokens.end());
  if (longest + options.output_tokens > context_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prompt-tokens and --output-tokens: ", longest, " + ", options.output_tokens,
                     " exceed the model's context of ", context_tokens));
  }
  ASSIGN_OR_RETURN(
      BenchTable out,
      BenchTable::Create(context, {"sequences", "prompt", "prefill", "decode", "weights read"},
                         {true, true, true, true, true}, {"sequences", "promptTokens"},
                         "decodeTokensPerSecond", options.compare));
  for (const int batch : options.batch) {
    for (const int prompt_tokens : options.prompt_tokens) {
      std::vector<double> prefill;
      std::vector<double> decode;
      // One run more, not counted, brings weights and code into the caches.
      for (int i = 0; i <= options.repeat; ++i) {
        ASSIGN_OR_RETURN(const LocalSpeed speed,
                         MeasureOnce(*engine, model, prompt_tokens, options.output_tokens, batch));
        if (i == 0) continue;
        prefill.push_back(speed.prefill);
        decode.push_back(speed.decode);
      }
      // Each step gives every sequence a token.
      const double read =
          Median(decode) / batch * static_cast<double>(model.info.step_weight_bytes) * 1e-9;
      out.Add(
          {absl::StrCat(batch), absl::StrCat(prompt_tokens),
           absl::StrFormat("%.1f tokens/s", Median(prefill)),
           absl::StrFormat("%.1f tokens/s", Median(decode)), absl::StrFormat("%.1f GB/s", read)},
          {{"sequences", batch},
           {"promptTokens", prompt_tokens},
           {"outputTokens", options.output_tokens},
           {"prefillTokensPerSecond", Median(prefill)},
           {"decodeTokensPerSecond", Median(decode)},
           {"weightsReadGbPerSecond", read}});
    }
  }
  out.Finish(
      {{"model", options.shape.empty() ? options.model : options.shape},
       {"format", model.format},
       {"kernels", model.info.kernel},
       {"weightBytes", model.info.weight_bytes},
       {"stepWeightBytes", model.info.step_weight_bytes},
       {"kvCacheType", std::string(KvCacheTypeName(options.kv_cache_type))},
       {"kvTokenBytes", model.info.kv_token_bytes},
       {"loadSeconds", absl::ToDoubleSeconds(load)}},
      absl::StrFormat(
          "%s, %s of weights, loaded in %.2f s, the %s kernels, KV cache of %s (%s a token), "
          "output of %d tokens, median of %d\n",
          model.format, FormatBytes(model.info.weight_bytes), absl::ToDoubleSeconds(load),
          model.info.kernel, KvCacheTypeName(options.kv_cache_type),
          FormatBytes(model.info.kv_token_bytes), options.output_tokens, options.repeat));
  return absl::OkStatus();
}

}  // namespace

void AddBenchModel(CLI::App& bench, Command& command) {
  auto options = std::make_shared<ModelOptions>();
  CLI::App* sub = bench.add_subcommand("model", "Prefill and decode tokens/s");
  sub->add_option("model", options->model, "artifact directory or checkpoint");
  sub->add_option("--shape", options->shape, "random weights of this shape instead")
      ->check(CLI::IsMember(SyntheticShapes()));
  sub->add_option("--bits", options->format.bits, "of the weights of --shape")
      ->check(CLI::IsMember({2, 3, 4, 8}))
      ->capture_default_str();
  sub->add_option("--group-size", options->format.group_size, "of the weights of --shape")
      ->check(CLI::IsMember({0, 32, 64, 128}))
      ->capture_default_str();
  sub->add_option("--embedding-bits", options->format.embedding_bits,
                  "of embedding and head of --shape")
      ->check(CLI::IsMember({4, 8, 16}))
      ->capture_default_str();
  sub->add_option("--kernels", options->kernels,
                  "table of an instruction set, such as avx2 or scalar (the best there is)");
  AddPrecision(*sub, "--precision", "of packed matrices", options->precision);
  AddKvCacheType(*sub, options->kv_cache_type);
  sub->add_option("--prompt-tokens", options->prompt_tokens,
                  "of each prompt; several: each in turn")
      ->check(CLI::Range(1, 131072))
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--sequences", options->batch, "at once; several: each in turn")
      ->check(CLI::Range(1, 64))
      ->delimiter(',')
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
  sub->add_option("--compare", options->compare, "output of an earlier run with --json");
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunBench(*options, context); };
  });
}

void AddBench(CLI::App& app, Command& command) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed");
  bench->require_subcommand(1);
  bench->fallthrough();
  AddBenchMachine(*bench, command);
  AddBenchKernels(*bench, command);
  AddBenchModel(*bench, command);
  AddBenchServe(*bench, command);
  AddBenchSpeculation(*bench, command);
}

}  // namespace quern::cli

// `quern bench speculation`: what guessing tokens ahead gains on a text, in this process.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/base/status_macros.h"
#include "core/bench/machine_limits.h"
#include "services/cli/bench_commands.h"
#include "services/cli/bench_table.h"
#include "services/cli/local_model.h"
#include "services/cli/local_requests.h"

namespace quern::cli {
namespace {

constexpr size_t kMaxPromptTextBytes = size_t{64} << 20;

struct SpeculationBenchOptions {
  std::string model;
  std::string text;
  std::vector<std::string> drafts;
  std::vector<int> guesses = {4};
  std::vector<int> sequences = {1};
  int prompt_tokens = 128;
  int output_tokens = 128;
  int repeat = 3;
  int threads = 0;
  std::string compare;
};

// One way to guess.
struct Variant {
  std::string name;
  std::string draft;  // path; empty: prompt lookup, or none at all
  int max_guesses = 0;
};

struct Measured {
  double decode = 0;  // tokens/s
  std::vector<LocalAnswer> answers;
};

// Prompts of the text's tokens, one after the other.
absl::StatusOr<std::vector<GenerationRequest>> MakeRequests(const SpeculationBenchOptions& options,
                                                            const std::vector<int32_t>& tokens,
                                                            int sequences) {
  if (static_cast<int64_t>(tokens.size()) < int64_t{sequences} * options.prompt_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text ", options.text, ": has ", tokens.size(), " tokens, wanted ",
                     int64_t{sequences} * options.prompt_tokens, " for ", sequences,
                     " prompts; give a longer text or smaller --prompt-tokens"));
  }
  std::vector<GenerationRequest> requests(sequences);
  for (int i = 0; i < sequences; ++i) {
    const auto begin = tokens.begin() + int64_t{i} * options.prompt_tokens;
    requests[i].prompt.assign(begin, begin + options.prompt_tokens);
    requests[i].max_output_tokens = options.output_tokens;
    requests[i].ignore_end_of_text = true;
  }
  return requests;
}

absl::StatusOr<Measured> MeasureVariant(Engine& engine, const SpeculationBenchOptions& options,
                                        ModelHandle model,
                                        const std::vector<GenerationRequest>& requests) {
  Measured measured;
  std::vector<double> decode;
  // One run more, not counted, brings weights and code into the caches.
  for (int i = 0; i <= options.repeat; ++i) {
    ASSIGN_OR_RETURN(measured.answers, GenerateTogether(engine, model, requests));
    if (i > 0) decode.push_back(SpeedOf(measured.answers).decode);
  }
  measured.decode = Median(decode);
  return measured;
}

// Speculation must not show in the answers.
absl::Status CheckEqual(const std::string& name, const Measured& plain, const Measured& guessed) {
  for (size_t i = 0; i < plain.answers.size(); ++i) {
    if (plain.answers[i].ids == guessed.answers[i].ids) continue;
    return absl::InternalError(absl::StrCat("answer ", i, " of ", name,
                                            " differs from the one without speculation; this is a "
                                            "bug, please report it"));
  }
  return absl::OkStatus();
}

std::vector<Variant> VariantsOf(const SpeculationBenchOptions& options) {
  std::vector<Variant> variants = {{.name = "none"}};
  for (const int guesses : options.guesses) {
    variants.push_back({.name = "prompt lookup", .max_guesses = guesses});
    for (const std::string& draft : options.drafts) {
      variants.push_back({.name = draft, .draft = draft, .max_guesses = guesses});
    }
  }
  return variants;
}

absl::StatusOr<LocalModel> LoadVariant(Engine& engine, const SpeculationBenchOptions& options,
                                       const Variant& variant) {
  std::unique_ptr<ModelSource> draft;
  if (!variant.draft.empty()) {
    ASSIGN_OR_RETURN(draft, OpenLocalSource(variant.draft));
  }
  return LoadLocalModel(
      engine, options.model,
      {.speculation = {.max_guesses = variant.max_guesses, .draft = draft.get()}});
}

absl::Status RunBench(const SpeculationBenchOptions& options, const Context& context) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(options.text, kMaxPromptTextBytes));
  ASSIGN_OR_RETURN(const auto engine, MakeLocalEngine(options.threads));
  ASSIGN_OR_RETURN(
      BenchTable out,
      BenchTable::Create(context,
                         {"sequences", "guesses by", "guesses", "right", "decode", "speed-up"},
                         {true, false, true, true, true, true}, {"sequences", "by", "guesses"},
                         "decodeTokensPerSecond", options.compare));
  std::string format;
  std::string kernel;
  std::map<int, Measured> plain;  // by sequences
  // One at a time: each has keys and values of its own.
  for (const Variant& variant : VariantsOf(options)) {
    ASSIGN_OR_RETURN(const LocalModel model, LoadVariant(*engine, options, variant));
    if (model.tokenizer == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat(options.model, ": has no tokenizer to read the text with"));
    }
    format = model.format;
    kernel = model.info.kernel;
    ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                     model.tokenizer->Encode(
                         text, {.add_special_tokens = false, .parse_special_tokens = false}));
    for (const int sequences : options.sequences) {
      ASSIGN_OR_RETURN(const std::vector<GenerationRequest> requests,
                       MakeRequests(options, tokens, sequences));
      const EngineStats before = engine->Stats();
      ASSIGN_OR_RETURN(Measured measured, MeasureVariant(*engine, options, model.handle, requests));
      const EngineStats after = engine->Stats();
      if (variant.max_guesses == 0) plain[sequences] = measured;
      RETURN_IF_ERROR(CheckEqual(variant.name, plain.at(sequences), measured));
      const auto guessed = static_cast<double>(after.guessed_tokens - before.guessed_tokens);
      const auto right = static_cast<double>(after.accepted_guesses - before.accepted_guesses);
      const double share = guessed > 0 ? right / guessed : 0;
      const double speedup = measured.decode / plain.at(sequences).decode;
      out.Add(
          {absl::StrCat(sequences), variant.name, absl::StrCat(variant.max_guesses),
           guessed > 0 ? absl::StrFormat("%.0f %%", 100 * share) : "",
           absl::StrFormat("%.1f tokens/s", measured.decode), absl::StrFormat("%.2fx", speedup)},
          {{"sequences", sequences},
           {"by", variant.name},
           {"guesses", variant.max_guesses},
           {"rightShare", share},
           {"decodeTokensPerSecond", measured.decode},
           {"speedup", speedup}});
    }
    RETURN_IF_ERROR(engine->Unload(model.handle));
  }
  out.Finish({{"model", options.model},
              {"format", format},
              {"kernels", kernel},
              {"text", options.text},
              {"promptTokens", options.prompt_tokens},
              {"outputTokens", options.output_tokens}},
             absl::StrFormat("%s, the %s kernels, prompts of %d tokens of %s, greedy answers of %d "
                             "tokens, equal in all rows; median of %d\n",
                             format, kernel, options.prompt_tokens, options.text,
                             options.output_tokens, options.repeat));
  return absl::OkStatus();
}

}  // namespace

void AddBenchSpeculation(CLI::App& bench, Command& command) {
  auto options = std::make_shared<SpeculationBenchOptions>();
  CLI::App* sub = bench.add_subcommand(
      "speculation", "Decode tokens/s with guesses of the next tokens and without");
  sub->add_option("model", options->model, "artifact directory or checkpoint")->required();
  sub->add_option("--text", options->text, "plain text, UTF-8, whose beginning the prompts are")
      ->required();
  sub->add_option("--draft", options->drafts,
                  "models of the same tokenizer that guess, beside prompt lookup");
  sub->add_option("--guesses", options->guesses, "in one step; several: each in turn")
      ->check(CLI::Range(1, kMaxGuesses))
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--sequences", options->sequences, "at once; several: each in turn")
      ->check(CLI::Range(1, 64))
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--prompt-tokens", options->prompt_tokens, "of each prompt")
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
  sub->add_option("--compare", options->compare, "output of an earlier run with --json");
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunBench(*options, context); };
  });
}

}  // namespace quern::cli

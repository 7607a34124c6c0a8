// `quern eval`: fidelity of models to their source on a text, and zero-shot tasks, in this process.

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/status_macros.h"
#include "core/eval/evaluate.h"
#include "core/eval/zero_shot.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/local_model.h"

namespace quern::cli {
namespace {

constexpr size_t kMaxTextBytes = size_t{256} << 20;

struct EvalOptions {
  std::vector<std::string> models;
  std::string source;
  std::string text;
  std::vector<std::string> tasks;
  int max_items = 0;
  Precision precision = Precision::kMixed;
  Precision source_precision = Precision::kMixed;
  KvCacheType kv_cache_type = KvCacheType::kFloat16;
  int chunk_tokens = 512;
  int max_chunks = 40;
  int threads = 0;
};

// The last parts of a path.
std::string NameOf(const std::string& path, int num_parts = 1) {
  std::filesystem::path rest = std::filesystem::path(path).lexically_normal();
  if (!rest.has_filename()) rest = rest.parent_path();
  std::filesystem::path name;
  for (int i = 0; i < num_parts && rest.has_relative_path(); ++i) {
    name = name.empty() ? rest.filename() : rest.filename() / name;
    rest = rest.parent_path();
  }
  return name.string();
}

// As short as they can be and still differ: artifacts of several jobs all lie in "artifact".
std::vector<std::string> NamesOf(const std::vector<std::string>& paths) {
  constexpr int kMaxParts = 8;
  for (int num_parts = 1; num_parts <= kMaxParts; ++num_parts) {
    std::vector<std::string> names;
    for (const std::string& path : paths) names.push_back(NameOf(path, num_parts));
    if (std::set<std::string>(names.begin(), names.end()).size() == names.size()) return names;
  }
  return paths;
}

struct Results {
  bool compared = true;  // else one model alone was measured
  std::vector<EvaluationRow> text;
  std::vector<ZeroShotRow> tasks;
};

void PrintAsJson(const Results& results) {
  Json list = Json::array();
  for (const EvaluationRow& row : results.text) {
    list.push_back({{"model", row.model},
                    {"dataset", row.dataset},
                    {"perplexity", row.perplexity},
                    {"tokenCount", row.token_count}});
    if (!results.compared) continue;
    list.back()["klDivergence"] = row.kl_divergence;
    list.back()["top1Agreement"] = row.top1_agreement;
  }
  Json tasks = Json::array();
  for (const ZeroShotRow& row : results.tasks) {
    tasks.push_back({{"model", row.model},
                     {"task", row.task},
                     {"itemCount", row.num_items},
                     {"accuracy", row.accuracy},
                     {"accuracyError", row.accuracy_error}});
    if (results.compared) {
      tasks.back()["difference"] = row.difference;
      tasks.back()["differenceError"] = row.difference_error;
    }
    if (row.accuracy_norm.has_value()) {
      tasks.back()["accuracyNorm"] = *row.accuracy_norm;
      tasks.back()["accuracyNormError"] = *row.accuracy_norm_error;
    }
  }
  std::cout << Json{{"rows", list}, {"tasks", tasks}}.dump() << std::endl;
}

void PrintTasks(const Results& results) {
  std::vector<std::vector<std::string>> cells = {
      {"task", "model", "items", "acc, %", "acc_norm, %"}};
  if (results.compared) cells.back().push_back("acc - source's");
  for (const ZeroShotRow& row : results.tasks) {
    cells.push_back({row.task, row.model, FormatCount(row.num_items),
                     FormatShare(row.accuracy, row.accuracy_error),
                     row.accuracy_norm.has_value()
                         ? FormatShare(*row.accuracy_norm, *row.accuracy_norm_error)
                         : ""});
    if (!results.compared) continue;
    cells.back().push_back(
        row.model == "source" ? "" : FormatShare(row.difference, row.difference_error));
  }
  std::vector<bool> right = {false, false, true, true, true};
  if (results.compared) right.push_back(true);
  std::cout << FormatTable(cells, right);
}

void PrintText(const Results& results) {
  std::vector<std::vector<std::string>> cells = {{"model", "perplexity", "tokens"}};
  if (results.compared) {
    cells = {{"model", "perplexity", "KL to source", "same top-1", "tokens"}};
  }
  for (const EvaluationRow& row : results.text) {
    const bool source = row.model == "source";
    cells.push_back({row.model, absl::StrFormat("%.4f", row.perplexity)});
    if (results.compared) {
      cells.back().push_back(source ? "" : absl::StrFormat("%.3g", row.kl_divergence));
      cells.back().push_back(source ? "" : absl::StrFormat("%.1f %%", 100 * row.top1_agreement));
    }
    cells.back().push_back(FormatCount(row.token_count));
  }
  std::vector<bool> right(cells[0].size(), true);
  right[0] = false;
  std::cout << FormatTable(cells, right);
}

absl::StatusOr<std::vector<ZeroShotTask>> ReadTasks(const EvalOptions& options) {
  std::vector<ZeroShotTask> tasks;
  for (const std::string& path : options.tasks) {
    ASSIGN_OR_RETURN(const std::string jsonl, ReadFile(path, kMaxTextBytes));
    const std::string name(absl::StripSuffix(NameOf(path), ".jsonl"));
    ASSIGN_OR_RETURN(ZeroShotTask task, ParseZeroShotTask(name, jsonl, options.max_items));
    tasks.push_back(std::move(task));
  }
  return tasks;
}

// A line that is written over and over, or one in the log for each tenth: each copy counts anew.
std::function<void(int64_t, int64_t)> MakeProgress(bool show) {
  return [show, tenths = int64_t{0}](int64_t done, int64_t total) mutable {
    if (show) {
      std::cout << "\r\x1b[2Kscored " << done << " of " << total << std::flush;
    } else if (const int64_t now = 10 * done / total; now > tenths) {
      tenths = now;
      LOG(INFO) << "eval scored=" << done << " total=" << total;
    }
  };
}

absl::Status RunEval(const EvalOptions& options, const Context& context) {
  if (options.text.empty() && options.tasks.empty()) {
    return absl::InvalidArgumentError("--text or --tasks is wanted");
  }
  if (absl::EndsWith(options.text, ".jsonl")) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text ", options.text, ": plain text is wanted, not JSON lines"));
  }
  std::string source_path = options.source;
  if (source_path.empty()) {
    if (options.models.size() != 1) {
      return absl::InvalidArgumentError("--source is wanted, to compare more than one model with");
    }
    // Alone, or for what the KV cache costs by itself: nothing else is to differ.
    source_path = options.models.front();
  }
  const bool compared = !options.source.empty() || options.kv_cache_type != KvCacheType::kFloat16;
  const Precision source_precision =
      options.source.empty() ? options.precision : options.source_precision;
  std::string text;
  if (!options.text.empty()) {
    ASSIGN_OR_RETURN(text, ReadFile(options.text, kMaxTextBytes));
  }
  ASSIGN_OR_RETURN(const std::vector<ZeroShotTask> tasks, ReadTasks(options));
  ASSIGN_OR_RETURN(const auto engine, MakeLocalEngine(options.threads));
  ASSIGN_OR_RETURN(const LocalModel source,
                   LoadLocalModel(*engine, source_path, {.precision = source_precision}));
  if (source.tokenizer == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(source_path, ": has no tokenizer to read the text with"));
  }
  const std::vector<std::string> names = NamesOf(options.models);
  std::vector<NamedModel> models;
  for (size_t i = 0; compared && i < options.models.size(); ++i) {
    ASSIGN_OR_RETURN(
        const LocalModel model,
        LoadLocalModel(*engine, options.models[i],
                       {.precision = options.precision, .kv_cache_type = options.kv_cache_type}));
    models.push_back({names[i], model.handle});
  }
  const bool show = context.terminal() && !context.json();
  const std::function<void(int64_t, int64_t)> on_progress = MakeProgress(show);
  const auto clear = [show] {
    if (show) std::cout << "\r\x1b[2K" << std::flush;
  };
  Results results{.compared = compared};
  if (!options.text.empty()) {
    ASSIGN_OR_RETURN(EvaluationText chunks, ChunkText(*source.tokenizer, NameOf(options.text), text,
                                                      options.chunk_tokens, options.max_chunks));
    absl::StatusOr<std::vector<EvaluationRow>> rows =
        Evaluate(*engine, source.handle, models, {std::move(chunks)}, on_progress);
    clear();
    RETURN_IF_ERROR(rows.status());
    results.text = *std::move(rows);
    if (!compared) results.text.front().model = names.front();
    if (!context.json()) PrintText(results);
  }
  if (!tasks.empty()) {
    absl::StatusOr<std::vector<ZeroShotRow>> rows =
        EvaluateZeroShot(*engine, source.handle, models, tasks, on_progress);
    clear();
    RETURN_IF_ERROR(rows.status());
    results.tasks = *std::move(rows);
    for (ZeroShotRow& row : results.tasks) {
      if (!compared) row.model = names.front();
    }
    if (!context.json()) {
      if (!results.text.empty()) std::cout << "\n";
      PrintTasks(results);
    }
  }
  if (context.json()) PrintAsJson(results);
  return absl::OkStatus();
}

}  // namespace

void AddEval(CLI::App& app, Command& command) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* sub =
      app.add_subcommand("eval", "Compare models with their source on a text or tasks, locally");
  sub->add_option("models", options->models, "artifact directories or checkpoints")->required();
  sub->add_option(
      "--source", options->source,
      "the checkpoint they came from, its KV cache of half floats; when left out, one model is "
      "measured alone, or with --kv-cache int8 or int4 compared with itself");
  sub->add_option("--text", options->text, "plain text, UTF-8: perplexity, KL divergence");
  sub->add_option(
      "--tasks", options->tasks,
      "zero-shot tasks as JSON lines (query, choices, gold; context_options, "
      "continuation, gold; context, continuation): PIQA, ARC, WinoGrande, LAMBADA, ...");
  sub->add_option("--max-items", options->max_items, "of each task, from its start; 0: all")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  AddPrecision(*sub, "--precision", "of packed matrices of the models", options->precision);
  AddPrecision(*sub, "--source-precision", "of packed matrices of the source",
               options->source_precision);
  AddKvCacheType(*sub, options->kv_cache_type);
  sub->add_option("--chunk-tokens", options->chunk_tokens, "each scored on its own")
      ->check(CLI::Range(2, 131072))
      ->capture_default_str();
  sub->add_option("--max-chunks", options->max_chunks, "from the start of the text; 0: all")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  sub->add_option("--threads", options->threads, "0: one for each CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RunEval(*options, context); };
  });
}

}  // namespace quern::cli

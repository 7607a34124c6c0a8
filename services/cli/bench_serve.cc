// `quern bench serve`: how a running server answers under load.
//
// Open loop (--rate): requests come at times drawn beforehand (a Poisson process), whether or not
// earlier ones have been answered, and what a client waits counts from the time its request was
// due. A closed loop would ask a slow server less often and so hide its queue ("coordinated
// omission"); it (--concurrency) tells what a server can do, not how long its clients wait.

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/base/status_macros.h"
#include "services/cli/bench_commands.h"
#include "services/cli/bench_table.h"
#include "services/cli/load.h"
#include "services/cli/load_prompts.h"
#include "services/cli/load_report.h"

namespace quern::cli {
namespace {

// A rate is within a server's capacity when at least this share of its requests are answered well;
// as in DistServe (Zhong et al., OSDI 2024), section 2.
constexpr double kCapacityShare = 0.9;
// Between two looks at whether the user has interrupted.
constexpr absl::Duration kLook = absl::Milliseconds(100);

struct ServeOptions {
  std::string model;
  std::string api = "quern";
  std::string url;
  std::vector<double> rates = {1};
  std::vector<int> concurrencies;  // not empty: closed loop
  int seconds = 30;
  int drain_seconds = 600;
  std::string prompts;
  int prompt_tokens = 128;
  int output_tokens = 64;
  bool end_of_text = false;
  int first_token_limit_ms = 1000;
  int next_token_limit_ms = 100;
  uint64_t seed = 1;
  std::string compare;
};

// How the load of one row is made: at a rate, or by so many streams.
struct OfferedLoad {
  double rate = 0;
  int concurrency = 0;

  std::string ToString() const {
    return rate > 0 ? absl::StrFormat("%g", rate) : absl::StrCat(concurrency);
  }
};

// Runs one load after another on one client.
class LoadRunner {
 public:
  LoadRunner(LoadClient& client, LoadPrompts prompts, const ServeOptions& options,
             const Interrupt& interrupt)
      : client_(client),
        prompts_(std::move(prompts)),
        options_(options),
        interrupt_(interrupt),
        random_(options.seed) {}

  // One request alone: tells early that there is no such model, and warms it up.
  absl::Status WarmUp() {
    outcomes_.clear();
    const absl::Time now = absl::Now();
    client_.Start(prompts_.Next(), {.due = now, .window_end = now},
                  [this](LoadOutcome outcome) { outcomes_.push_back(std::move(outcome)); });
    Drain(absl::InfiniteFuture());
    return outcomes_.front().status;
  }

  std::vector<LoadOutcome> Run(const OfferedLoad& load) {
    outcomes_.clear();
    const absl::Time start = absl::Now();
    window_end_ = start + absl::Seconds(options_.seconds);
    if (load.rate > 0) {
      RunOpen(load.rate, start);
    } else {
      for (int i = 0; i < load.concurrency; ++i) StartNextOfStream();
    }
    Drain(window_end_ + absl::Seconds(options_.drain_seconds));
    return std::move(outcomes_);
  }

 private:
  void RunOpen(double rate, absl::Time start) {
    std::exponential_distribution<double> gap(rate);
    absl::Time due = start + absl::Seconds(gap(random_));
    for (; due < window_end_; due += absl::Seconds(gap(random_))) {
      // Made before it is due.
      const LoadRequest request = prompts_.Next();
      for (absl::Time now = absl::Now(); now < due; now = absl::Now()) {
        if (interrupt_.interrupted()) return;
        const absl::Time look = std::min(due, now + kLook);
        if (client_.num_open() > 0) {
          client_.HandleUntil(look);
        } else {
          absl::SleepFor(look - now);
        }
      }
      client_.Start(request, {.due = due, .window_end = window_end_},
                    [this](LoadOutcome outcome) { outcomes_.push_back(std::move(outcome)); });
    }
  }

  void StartNextOfStream() {
    client_.Start(prompts_.Next(), {.due = absl::Now(), .window_end = window_end_},
                  [this](LoadOutcome outcome) {
                    // A stream whose request failed at once would do nothing but ask again.
                    const bool goes_on = outcome.status.ok() && absl::Now() < window_end_ &&
                                         !interrupt_.interrupted();
                    outcomes_.push_back(std::move(outcome));
                    if (goes_on) StartNextOfStream();
                  });
  }

  // Until no request is open; from `limit` on, or when the user interrupts, they are given up.
  void Drain(absl::Time limit) {
    while (client_.num_open() > 0) {
      const absl::Time now = absl::Now();
      if (interrupt_.interrupted() || now >= limit) client_.CancelAll();
      client_.HandleUntil(now + kLook);
    }
  }

  LoadClient& client_;
  LoadPrompts prompts_;
  const ServeOptions& options_;
  const Interrupt& interrupt_;
  std::mt19937_64 random_;
  absl::Time window_end_;
  std::vector<LoadOutcome> outcomes_;
};

// CPU time of this process.
absl::Duration CpuTime() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return absl::DurationFromTimeval(usage.ru_utime) + absl::DurationFromTimeval(usage.ru_stime);
}

absl::StatusOr<std::unique_ptr<LoadClient>> MakeClient(const ServeOptions& options,
                                                       const Context& context) {
  const LoadClientOptions client{.model = options.model,
                                 .ignore_end_of_text = !options.end_of_text};
  if (options.api == "openai") {
    std::string url = options.url;
    if (url.empty()) {
      ASSIGN_OR_RETURN(const std::string address,
                       context.Address("", "inference_http", kInferenceHttpAddress));
      url = absl::StrCat("http://", address);
    }
    ASSIGN_OR_RETURN(const HttpUrl parsed, ParseHttpUrl(url));
    if (parsed.tls) {
      return absl::InvalidArgumentError(
          absl::StrCat("--url: '", url, "' wants TLS, which the load has not; measure http://"));
    }
    return MakeHttpLoadClient(parsed, client);
  }
  if (!options.url.empty()) {
    return absl::InvalidArgumentError("--url is for --api openai; --inference names the address");
  }
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  return MakeGrpcLoadClient(std::move(channel), client);
}

std::vector<OfferedLoad> LoadsOf(const ServeOptions& options) {
  std::vector<OfferedLoad> loads;
  for (const int concurrency : options.concurrencies) loads.push_back({.concurrency = concurrency});
  if (!loads.empty()) return loads;
  for (const double rate : options.rates) loads.push_back({.rate = rate});
  return loads;
}

// The highest rate up to which every one of the sweep was within capacity.
std::optional<double> CapacityOf(std::vector<std::pair<double, double>> good_share_of_rate) {
  std::sort(good_share_of_rate.begin(), good_share_of_rate.end());
  std::optional<double> capacity;
  for (const auto& [rate, share] : good_share_of_rate) {
    if (share < kCapacityShare) break;
    capacity = rate;
  }
  return capacity;
}

std::string DescribeCapacity(const std::optional<double>& capacity) {
  if (!capacity.has_value()) {
    return absl::StrFormat("capacity: below these rates; none had %.0f %% good answers\n",
                           kCapacityShare * 100);
  }
  return absl::StrFormat(
      "capacity: %g requests/s, the highest of these with %.0f %% good answers\n", *capacity,
      kCapacityShare * 100);
}

std::string DescribeRun(const ServeOptions& options) {
  const std::string prompts = options.prompts.empty()
                                  ? absl::StrFormat("prompts of %d tokens", options.prompt_tokens)
                                  : absl::StrCat("prompts of ", options.prompts);
  return absl::StrFormat(
      "%d s each, %s, answers of %d; good: first token within %d ms and then "
      "%d ms a token\n",
      options.seconds, prompts, options.output_tokens, options.first_token_limit_ms,
      options.next_token_limit_ms);
}

absl::Status RunServe(const ServeOptions& options, const Context& context, Interrupt& interrupt) {
  LoadPrompts prompts =
      LoadPrompts::Random(options.prompt_tokens, options.output_tokens, options.seed);
  if (!options.prompts.empty()) {
    ASSIGN_OR_RETURN(prompts, LoadPrompts::FromFile(options.prompts, options.output_tokens));
  }
  const bool closed = !options.concurrencies.empty();
  std::vector<std::string> header = LoadColumns();
  header.insert(header.begin(), closed ? "streams" : "requests/s");
  const size_t num_columns = header.size();
  ASSIGN_OR_RETURN(
      BenchTable out,
      BenchTable::Create(context, std::move(header), std::vector<bool>(num_columns, true),
                         {closed ? "streams" : "requestsPerSecond"},
                         closed ? "outputTokensPerSecond" : "goodPerSecond", options.compare));
  interrupt.Watch();
  ASSIGN_OR_RETURN(const auto client, MakeClient(options, context));
  LoadRunner runner(*client, std::move(prompts), options, interrupt);
  RETURN_IF_ERROR(runner.WarmUp());

  const LoadLimits limits{.first_token = options.first_token_limit_ms * 1e-3,
                          .next_token = options.next_token_limit_ms * 1e-3};
  std::vector<std::pair<double, double>> good_share_of_rate;
  std::string notes;
  double client_cores = 0;
  for (const OfferedLoad& load : LoadsOf(options)) {
    const absl::Time start = absl::Now();
    const absl::Duration cpu_before = CpuTime();
    const std::vector<LoadOutcome> outcomes = runner.Run(load);
    if (interrupt.interrupted()) return absl::CancelledError("interrupted");
    const double cores = absl::FDivDuration(CpuTime() - cpu_before, absl::Now() - start);
    client_cores = std::max(client_cores, cores);
    const LoadSummary summary = Summarize(outcomes, limits);
    std::vector<std::string> cells = LoadCells(summary, options.seconds);
    cells.insert(cells.begin(), load.ToString());
    Json row = LoadJson(summary, options.seconds);
    row["clientCores"] = cores;
    if (closed) {
      row["streams"] = load.concurrency;
    } else {
      row["requestsPerSecond"] = load.rate;
      good_share_of_rate.emplace_back(load.rate, summary.good_share());
    }
    out.Add(std::move(cells), std::move(row));
    absl::StrAppend(&notes,
                    LoadNotes(load.ToString() + (closed ? " streams" : " requests/s"), summary));
  }
  Json document = {{"model", options.model},
                   {"api", options.api},
                   {"seconds", options.seconds},
                   {"prompts", options.prompts},
                   {"promptTokens", options.prompt_tokens},
                   {"outputTokens", options.output_tokens},
                   {"firstTokenLimitMs", options.first_token_limit_ms},
                   {"nextTokenLimitMs", options.next_token_limit_ms}};
  std::string below = absl::StrCat(notes, DescribeRun(options));
  if (good_share_of_rate.size() > 1) {
    const std::optional<double> capacity = CapacityOf(good_share_of_rate);
    document["capacityRequestsPerSecond"] = capacity.has_value() ? Json(*capacity) : Json();
    absl::StrAppend(&below, DescribeCapacity(capacity));
  }
  absl::StrAppendFormat(&below, "this client took at most %.1f %% of a core\n", client_cores * 100);
  out.Finish(std::move(document), below);
  return absl::OkStatus();
}

void AddLoadOptions(CLI::App& sub, ServeOptions& options) {
  CLI::Option* rate =
      sub.add_option("--rate,--rates", options.rates,
                     "open loop: requests a second; several: each in turn, to find the capacity")
          ->check(CLI::Range(0.01, 10000.0))
          ->delimiter(',')
          ->capture_default_str();
  sub.add_option("--concurrency", options.concurrencies,
                 "closed loop instead: so many streams at once, each asking again when it is "
                 "answered; several: each in turn")
      ->check(CLI::Range(1, 10000))
      ->delimiter(',')
      ->excludes(rate);
  sub.add_option("--seconds", options.seconds, "for which requests come")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  sub.add_option("--drain-seconds", options.drain_seconds,
                 "to wait then for answers; what is open after it is given up")
      ->check(CLI::Range(0, 86400))
      ->capture_default_str();
}

}  // namespace

void AddBenchServe(CLI::App& bench, Command& command) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* sub = bench.add_subcommand("serve", "Latency and throughput of a server under load");
  sub->add_option("model", options->model, "name of a model that it serves")->required();
  sub->add_option("--api", options->api,
                  "quern: gRPC; openai: HTTP, also of llama-server, vLLM and others")
      ->check(CLI::IsMember({"quern", "openai"}))
      ->capture_default_str();
  sub->add_option("--url", options->url,
                  "of an OpenAI-compatible server, http://HOST:PORT (default: quern-inference's)");
  AddLoadOptions(*sub, *options);
  sub->add_option("--prompts", options->prompts,
                  "file of JSON lines, {\"prompt\" or \"messages\", \"max_tokens\"}; unset: random "
                  "token ids")
      ->check(CLI::ExistingFile);
  sub->add_option("--prompt-tokens", options->prompt_tokens, "of each random prompt")
      ->check(CLI::Range(1, 131072))
      ->capture_default_str();
  sub->add_option("--output-tokens", options->output_tokens, "of each answer")
      ->check(CLI::Range(1, 131072))
      ->capture_default_str();
  sub->add_flag("--end-of-text", options->end_of_text,
                "answers may end earlier, where the model ends them");
  sub->add_option("--first-token-limit-ms", options->first_token_limit_ms,
                  "a good answer begins within it")
      ->check(CLI::Range(1, 3600000))
      ->capture_default_str();
  sub->add_option("--next-token-limit-ms", options->next_token_limit_ms,
                  "and takes at most this a token")
      ->check(CLI::Range(1, 3600000))
      ->capture_default_str();
  sub->add_option("--seed", options->seed, "of arrivals and prompts")->capture_default_str();
  sub->add_option("--compare", options->compare, "output of an earlier run with --json");
  sub->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      return RunServe(*options, context, interrupt);
    };
  });
}

}  // namespace quern::cli

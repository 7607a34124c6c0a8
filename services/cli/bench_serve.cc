// `quern bench serve`: how a running quern-inference answers under load.
//
// Open loop: requests come at times drawn beforehand (a Poisson process), whether or not earlier
// ones have been answered, and what a client waits counts from the time its request was due. A
// closed loop would ask a slow server less often and so hide its queue ("coordinated omission").

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "services/cli/bench_commands.h"
#include "services/cli/bench_table.h"
#include "services/common/grpc_hand_over.h"
#include "services/common/status.h"

namespace quern::cli {
namespace {

using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;
using inference::v1::InferenceService;

struct ServeOptions {
  std::string model;
  std::vector<double> rates = {1};
  int seconds = 30;
  int prompt_tokens = 128;
  int output_tokens = 64;
  int first_token_limit_ms = 1000;
  int next_token_limit_ms = 100;
  uint64_t seed = 1;
  std::string compare;
};

// What one request saw, in seconds.
struct Outcome {
  absl::Status status;
  double first_token = 0;
  double next_token = 0;  // mean between tokens
  double whole = 0;
  int output_tokens = 0;
};

// Outcomes of one rate, and the calls still to come. Thread-safe.
class Outcomes {
 public:
  void Begin(grpc::ClientContext* call) {
    MutexLock lock(&mutex_);
    open_.insert(call);
  }
  void Add(grpc::ClientContext* call, Outcome outcome) {
    MutexLock lock(&mutex_);
    outcomes_.push_back(std::move(outcome));
    open_.erase(call);
    if (open_.empty()) became_idle_.SignalAll();
  }
  // Of all that have begun; those still open are cancelled when the user interrupts.
  std::vector<Outcome> Wait(const Interrupt& interrupt) {
    MutexLock lock(&mutex_);
    while (!open_.empty()) {
      if (interrupt.interrupted()) {
        for (grpc::ClientContext* call : open_) call->TryCancel();
      }
      became_idle_.WaitWithTimeout(&mutex_, absl::Milliseconds(100));
    }
    return std::move(outcomes_);
  }

 private:
  Mutex mutex_;
  CondVar became_idle_;
  std::set<grpc::ClientContext*> open_ ABSL_GUARDED_BY(mutex_);
  std::vector<Outcome> outcomes_ ABSL_GUARDED_BY(mutex_);
};

// One streamed request; frees itself when the call is over.
class ServeCall final : public grpc::ClientReadReactor<GenerateTextResponse> {
 public:
  static void Start(InferenceService::Stub& stub, GenerateTextRequest request, absl::Time due,
                    Outcomes& outcomes) {
    auto* call = new ServeCall(std::move(request), due, outcomes);
    outcomes.Begin(&call->context_);
    stub.async()->StreamGenerateText(&call->context_, &call->request_, call);
    ReleaseToGrpc(call);
    call->StartRead(&call->message_);
    call->StartCall();
  }

  void OnReadDone(bool ok) override {
    AcquireFromGrpc(this);
    if (!ok) return ReleaseToGrpc(this);
    if (message_.token_ids_size() > 0) {
      last_token_ = absl::Now();
      if (num_tokens_ == 0) first_token_ = last_token_;
      num_tokens_ += message_.token_ids_size();
    }
    ReleaseToGrpc(this);
    StartRead(&message_);
  }
  void OnDone(const grpc::Status& status) override {
    AcquireFromGrpc(this);
    Outcome outcome{.status = FromGrpcStatus(status)};
    outcome.whole = absl::ToDoubleSeconds(absl::Now() - due_);
    outcome.output_tokens = num_tokens_;
    if (num_tokens_ > 0) outcome.first_token = absl::ToDoubleSeconds(first_token_ - due_);
    if (num_tokens_ > 1) {
      outcome.next_token = absl::ToDoubleSeconds(last_token_ - first_token_) / (num_tokens_ - 1);
    }
    outcomes_.Add(&context_, std::move(outcome));
    delete this;
  }

 private:
  ServeCall(GenerateTextRequest request, absl::Time due, Outcomes& outcomes)
      : request_(std::move(request)), due_(due), outcomes_(outcomes) {}

  const GenerateTextRequest request_;
  const absl::Time due_;
  Outcomes& outcomes_;
  grpc::ClientContext context_;
  GenerateTextResponse message_;
  absl::Time first_token_;
  absl::Time last_token_;
  int num_tokens_ = 0;
};

// The value that `share` of `values` do not exceed; 0 for none.
double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto index = static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + index, values.end());
  return values[index];
}

std::vector<Outcome> Run(InferenceService::Stub& stub, const ServeOptions& options, double rate,
                         Interrupt& interrupt) {
  std::mt19937_64 random(options.seed);
  std::exponential_distribution<double> gap(rate);
  // No two prompts begin alike: what is measured is to be computed. Ids that every vocabulary has.
  std::uniform_int_distribution<int32_t> id(0, 255);
  Outcomes outcomes;
  const absl::Time start = absl::Now();
  double at = gap(random);
  for (; at < options.seconds && !interrupt.interrupted(); at += gap(random)) {
    GenerateTextRequest request;
    request.set_model(ResourceName("models", options.model));
    for (int i = 0; i < options.prompt_tokens; ++i) {
      request.mutable_prompt_tokens()->add_ids(id(random));
    }
    request.set_max_output_tokens(options.output_tokens);
    request.set_ignore_end_of_text(true);
    const absl::Time due = start + absl::Seconds(at);
    absl::SleepFor(due - absl::Now());
    ServeCall::Start(stub, std::move(request), due, outcomes);
  }
  return outcomes.Wait(interrupt);
}

struct Summary {
  int num_good = 0;  // answered within the limits
  std::vector<double> first, next, whole;
  int64_t output_tokens = 0;
  std::map<std::string, int> failures;  // by code
};

Summary Summarize(const std::vector<Outcome>& outcomes, const ServeOptions& options) {
  Summary summary;
  for (const Outcome& outcome : outcomes) {
    if (!outcome.status.ok()) {
      ++summary.failures[absl::StatusCodeToString(outcome.status.code())];
      continue;
    }
    summary.first.push_back(outcome.first_token);
    summary.next.push_back(outcome.next_token);
    summary.whole.push_back(outcome.whole);
    summary.output_tokens += outcome.output_tokens;
    if (outcome.first_token * 1e3 <= options.first_token_limit_ms &&
        outcome.next_token * 1e3 <= options.next_token_limit_ms) {
      ++summary.num_good;
    }
  }
  return summary;
}

std::string Milliseconds(double seconds) { return absl::StrFormat("%.1f ms", seconds * 1e3); }

absl::Status RunServe(const ServeOptions& options, const Context& context, Interrupt& interrupt) {
  ASSIGN_OR_RETURN(const auto channel, context.Inference());
  const auto stub = InferenceService::NewStub(channel);
  // One request alone tells early that there is no such model, and warms it up.
  ServeOptions warm_up = options;
  warm_up.seconds = 1;
  for (const Outcome& outcome : Run(*stub, warm_up, 2, interrupt)) RETURN_IF_ERROR(outcome.status);

  ASSIGN_OR_RETURN(BenchTable out,
                   BenchTable::Create(context,
                                      {"requests/s", "answered", "failed", "first token p50", "p99",
                                       "next token p50", "p99", "whole p99", "tokens/s", "good/s"},
                                      std::vector<bool>(10, true), {"requestsPerSecond"},
                                      "goodPerSecond", options.compare));
  for (const double rate : options.rates) {
    const absl::Time start = absl::Now();
    const std::vector<Outcome> outcomes = Run(*stub, options, rate, interrupt);
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    if (interrupt.interrupted()) return absl::CancelledError("interrupted");
    const Summary summary = Summarize(outcomes, options);
    const double tokens = static_cast<double>(summary.output_tokens) / seconds;
    // Of those that came: a queue that is worked off later does not count as capacity.
    const double good = summary.num_good / static_cast<double>(options.seconds);
    int failed = 0;
    Json failures = Json::object();
    for (const auto& [code, count] : summary.failures) {
      failed += count;
      failures[code] = count;
    }
    out.Add(
        {absl::StrFormat("%g", rate), absl::StrCat(summary.first.size()), absl::StrCat(failed),
         Milliseconds(Percentile(summary.first, 0.5)),
         Milliseconds(Percentile(summary.first, 0.99)), Milliseconds(Percentile(summary.next, 0.5)),
         Milliseconds(Percentile(summary.next, 0.99)),
         absl::StrFormat("%.1f s", Percentile(summary.whole, 0.99)),
         absl::StrFormat("%.1f", tokens), absl::StrFormat("%.2f", good)},
        {{"requestsPerSecond", rate},
         {"answered", static_cast<int64_t>(summary.first.size())},
         {"failures", failures},
         {"firstTokenSeconds",
          {{"p50", Percentile(summary.first, 0.5)},
           {"p90", Percentile(summary.first, 0.9)},
           {"p99", Percentile(summary.first, 0.99)}}},
         {"nextTokenSeconds",
          {{"p50", Percentile(summary.next, 0.5)},
           {"p90", Percentile(summary.next, 0.9)},
           {"p99", Percentile(summary.next, 0.99)}}},
         {"wholeSeconds",
          {{"p50", Percentile(summary.whole, 0.5)},
           {"p90", Percentile(summary.whole, 0.9)},
           {"p99", Percentile(summary.whole, 0.99)}}},
         {"outputTokensPerSecond", tokens},
         {"goodPerSecond", good}});
  }
  out.Finish({{"model", options.model},
              {"seconds", options.seconds},
              {"promptTokens", options.prompt_tokens},
              {"outputTokens", options.output_tokens},
              {"firstTokenLimitMs", options.first_token_limit_ms},
              {"nextTokenLimitMs", options.next_token_limit_ms}},
             absl::StrFormat("%d s each, prompts of %d tokens, answers of %d; good: first token "
                             "within %d ms and then %d ms a token\n",
                             options.seconds, options.prompt_tokens, options.output_tokens,
                             options.first_token_limit_ms, options.next_token_limit_ms));
  return absl::OkStatus();
}

}  // namespace

void AddBenchServe(CLI::App& bench, Command& command) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* sub = bench.add_subcommand("serve", "Latency of a running quern-inference under load");
  sub->add_option("model", options->model, "name of a model that it serves")->required();
  sub->add_option("--rate", options->rates, "requests a second; several: each in turn")
      ->check(CLI::Range(0.01, 10000.0))
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--seconds", options->seconds, "for which requests come")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
  sub->add_option("--prompt-tokens", options->prompt_tokens, "of each prompt")
      ->check(CLI::Range(1, 131072))
      ->capture_default_str();
  sub->add_option("--output-tokens", options->output_tokens, "of each answer")
      ->check(CLI::Range(2, 131072))
      ->capture_default_str();
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

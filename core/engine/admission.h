#ifndef QUERN_CORE_ENGINE_ADMISSION_H_
#define QUERN_CORE_ENGINE_ADMISSION_H_

#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <array>
#include <cstdint>
#include <string>

#include "core/engine/engine.h"

namespace quern {

struct AdmissionLimits {
  int max_sequences = 0;        // requests that can run
  int max_queued_requests = 0;  // beyond them
  int64_t max_queued_tokens = 0;
  absl::Duration max_queue_wait = absl::InfiniteDuration();  // of requests above Priority::kLow
};

// What the engine has to do for one model and how fast it is, for estimates.
struct EngineLoad {
  // By priority: requests that wait, and tokens of prompts (of those that run too) to be computed.
  std::array<int, kNumPriorities> waiting = {};
  std::array<int64_t, kNumPriorities> prompt_tokens = {};
  int free_places = 0;  // for requests that wait
  // Of the requests that run, the ones that should end first: how many steps from now, ascending,
  // by how long answers were lately.
  static constexpr int kMaxNextEnds = 16;
  std::array<double, kMaxNextEnds> next_ends = {};
  int num_next_ends = 0;
  double seconds_per_step = 0;  // 0: not known yet

  double computed_share = 1;  // of the prompts that wait, what the prefix cache will not have

  void AddEnd(double steps);
  void AddWaiting(Priority priority, int num_prompt_tokens);
  // Of all steps, and of those that were mostly of prompts; 0: not known yet.
  double tokens_per_second = 0;
  double prompt_tokens_per_second = 0;
};

// Which requests are in the engine, waiting or running, and whether there is room for another:
//
// - at most max_sequences + max_queued_requests of them;
// - at most max_queued_tokens tokens of prompts and answers together, though one alone always fits;
// - what waits is shared by dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on
//   Networking 6(2), 1998): one principal holds at most twice the room that is left, of places and
//   of tokens. So one alone gets two thirds of the queue, two get two fifths each, and however many
//   press for room there is some for who comes new. Requests without a principal are of many, and
//   not held to it;
// - at most max_queue_wait until a request's own prompt is computed, by an estimate: of the places
//   that the requests before it need and when the ones that run should end, and of the tokens of
//   their prompts. Before it are those of its priority and above, though of other principals no
//   more than of its own each, since they take turns. Priority::kLow is for work that can wait.
//
// Thread-compatible.
class Admission {
 public:
  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  // Whether a request of `tokens` more has room. Else RESOURCE_EXHAUSTED with NoRoomOf and
  // RetryDelayOf: when there should be room if the engine goes on as `load` says.
  absl::Status Check(absl::string_view principal, Priority priority, int64_t tokens,
                     const EngineLoad& load) const;
  // How long a request would wait until its own prompt is computed.
  absl::Duration ExpectedWait(absl::string_view principal, Priority priority,
                              const EngineLoad& load) const;

  void Enter(const std::string& principal, int64_t tokens);
  // `computed_tokens`: what it took, its prompt and its answer.
  void Leave(const std::string& principal, int64_t tokens, int64_t computed_tokens);

  int num_requests() const { return all_.requests; }
  int64_t num_tokens() const { return all_.tokens; }

 private:
  struct Held {
    int requests = 0;
    int64_t tokens = 0;
  };

  // Tokens of an unfinished request: as asked, or rather what the latest ones took.
  double MeanTokens() const;

  const AdmissionLimits limits_;
  // Of the requests that left and got something, the latest above all.
  double mean_computed_ = 0;
  int64_t num_computed_ = 0;
  Held all_;
  absl::flat_hash_map<std::string, Held> by_principal_;  // who holds something
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_ADMISSION_H_

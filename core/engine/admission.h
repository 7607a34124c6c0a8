#ifndef QUERN_CORE_ENGINE_ADMISSION_H_
#define QUERN_CORE_ENGINE_ADMISSION_H_

#include <absl/container/flat_hash_map.h>
#include <absl/status/status.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <string>

namespace quern {

struct AdmissionLimits {
  int max_sequences = 0;        // requests that can run
  int max_queued_requests = 0;  // beyond them
  int64_t max_queued_tokens = 0;
};

// Which requests are in the engine, waiting or running, and whether there is room for another:
//
// - at most max_sequences + max_queued_requests of them;
// - at most max_queued_tokens tokens of prompts and answers together, though one alone always fits;
// - what waits is shared by dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on
//   Networking 6(2), 1998): one principal holds at most twice the room that is left, of places and
//   of tokens. So one alone gets two thirds of the queue, two get two fifths each, and however many
//   press for room there is some for who comes new. Requests without a principal are of many, and
//   not held to it.
//
// Thread-compatible.
class Admission {
 public:
  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  // Whether a request of `tokens` more has room. Else RESOURCE_EXHAUSTED with NoRoomOf and
  // RetryDelayOf: when there should be room if the engine goes on with `tokens_per_second` (0: not
  // known yet).
  absl::Status Check(absl::string_view principal, int64_t tokens, double tokens_per_second) const;

  void Enter(const std::string& principal, int64_t tokens);
  void Leave(const std::string& principal, int64_t tokens);

  int num_requests() const { return all_.requests; }
  int64_t num_tokens() const { return all_.tokens; }

 private:
  struct Held {
    int requests = 0;
    int64_t tokens = 0;
  };

  const AdmissionLimits limits_;
  Held all_;
  absl::flat_hash_map<std::string, Held> by_principal_;  // who holds something
};

}  // namespace quern

#endif  // QUERN_CORE_ENGINE_ADMISSION_H_

#ifndef QUERN_CORE_STORE_JOB_STORE_H_
#define QUERN_CORE_STORE_JOB_STORE_H_

// Jobs, leases and events. The store owns the state machine (queued, running, cancelling, ended)
// and the fence; the task, progress, error and result are opaque bytes to it.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace quern {

// Persisted: never renumbered.
enum class JobState {
  kQueued = 1,
  kRunning = 2,
  kCancelling = 3,
  kSucceeded = 4,
  kFailed = 5,
  kCancelled = 6,
};
bool IsTerminal(JobState state);

struct JobRecord {
  std::string id;
  JobState state = JobState::kQueued;
  std::string spec;        // opaque: the job as it was created
  std::string progress;    // opaque, last report
  std::string error;       // opaque, when failed
  std::string artifact;    // artifact id (hex) when succeeded with one
  std::string evaluation;  // opaque
  absl::Time create_time;
  absl::Time start_time = absl::InfinitePast();
  absl::Time end_time = absl::InfinitePast();
  int attempt_count = 0;
  int64_t fence = 0;
  std::string lease_owner;
  absl::Time lease_expire_time = absl::InfinitePast();
  int64_t last_sequence = 0;  // of the job's newest event
};

struct JobEventRecord {
  enum class Kind { kState = 1, kProgress = 2, kLog = 3 };
  int64_t sequence = 0;  // 1, 2, ... within the job
  absl::Time time;
  Kind kind = Kind::kState;
  std::string payload;  // kState: the JobState's number; otherwise opaque
};

struct LeaseGrant {
  JobRecord job;
  std::string token;  // opaque; stands for (job, fence)
};

// Every call that returns OK is durable. Thread-safe. Of each job all state changes are kept, and
// the newest `kKeptEvents` of the other events.
class JobStore {
 public:
  virtual ~JobStore() = default;

  static constexpr int kKeptEvents = 1000;
  // A job whose lease runs out this often with no progress in between fails; so does one that was
  // leased `kMaxAttempts` times in all.
  static constexpr int kMaxAttemptsWithoutProgress = 3;
  static constexpr int kMaxAttempts = 50;

  // `request_digest` stands for what the caller asked: the same `request_id` (when not empty) with
  // the same digest returns the first job; with another one ALREADY_EXISTS.
  virtual absl::StatusOr<JobRecord> Create(const std::string& spec, const std::string& request_id,
                                           const std::string& request_digest) = 0;
  // The job that Create would return instead of making one, if any; ALREADY_EXISTS as there.
  virtual absl::StatusOr<std::optional<JobRecord>> FindRequest(
      const std::string& request_id, const std::string& request_digest) = 0;
  // NOT_FOUND.
  virtual absl::StatusOr<JobRecord> Get(const std::string& id) = 0;
  struct Page {
    std::vector<JobRecord> jobs;  // newest first
    std::string next_page_token;
  };
  // INVALID_ARGUMENT for a token this store did not make.
  virtual absl::StatusOr<Page> List(int page_size, const std::string& page_token,
                                    const std::vector<JobState>& states) = 0;
  // QUEUED -> CANCELLED, RUNNING -> CANCELLING; others unchanged (returned as they are).
  virtual absl::StatusOr<JobRecord> Cancel(const std::string& id) = 0;
  // FAILED_PRECONDITION unless ended.
  virtual absl::Status Delete(const std::string& id) = 0;
  // Events with a greater sequence, oldest first, at most `limit`.
  virtual absl::StatusOr<std::vector<JobEventRecord>> Events(const std::string& id,
                                                             int64_t after_sequence, int limit) = 0;

  // Gives the oldest queued job to `worker`, or nothing. The same `request_id` while that lease is
  // live returns the same grant. Each grant raises the job's fence and attempt count. Leases that
  // ran out do not count as live, even if ExpireLeases has not seen them.
  virtual absl::StatusOr<std::optional<LeaseGrant>> Lease(const std::string& worker,
                                                          const std::string& request_id,
                                                          absl::Duration duration) = 0;
  struct Renewal {
    absl::Time expire_time;
    bool cancel_requested = false;
  };
  // ABORTED when the lease was lost: expired and seen so, or the job was leased again or ended.
  // Empty `progress` keeps the last one. `progress_mark` grows with work that will not be done
  // again; only a value above all earlier ones counts as progress.
  virtual absl::StatusOr<Renewal> Renew(const std::string& token, const std::string& progress,
                                        int64_t progress_mark,
                                        const std::vector<std::string>& log_lines,
                                        absl::Duration duration) = 0;
  // Returns the job to the queue without counting the attempt (a worker that drains); a job that
  // was asked to stop becomes CANCELLED. Returns it as it is then; ABORTED when the lease was lost.
  virtual absl::StatusOr<JobRecord> Release(const std::string& token) = 0;
  // The job and fence of a live lease; ABORTED when it was lost.
  virtual absl::StatusOr<JobRecord> CheckLease(const std::string& token) = 0;
  // Ends the job under its lease and publishes `artifact` (hex id, or empty) in one transaction.
  // `state` is kSucceeded, kFailed or kCancelled. Repeating the same end is OK; ABORTED when the
  // lease was lost; FAILED_PRECONDITION for kCancelled on a job that was not asked to stop. Any end
  // of a CANCELLING job gives CANCELLED and publishes nothing.
  virtual absl::StatusOr<JobRecord> Complete(const std::string& token, JobState state,
                                             const std::string& artifact,
                                             const std::string& artifact_record,
                                             const std::string& evaluation,
                                             const std::string& error) = 0;
  // Jobs whose lease ran out go back to the queue; they fail with `poisoned_error` (opaque, given
  // to the store at its start) after too many attempts, and are CANCELLED when they were asked to
  // stop. Returns them as they are then, also those that Lease expired since the last call.
  virtual absl::StatusOr<std::vector<JobRecord>> ExpireLeases() = 0;

  // Published artifacts: rows made by Complete; the first record of an id stays. `record` is
  // opaque.
  struct ArtifactRecord {
    std::string id;
    std::string record;
    absl::Time create_time;
  };
  virtual absl::StatusOr<ArtifactRecord> GetArtifact(const std::string& id) = 0;
  struct ArtifactPage {
    std::vector<ArtifactRecord> artifacts;  // newest first
    std::string next_page_token;
  };
  virtual absl::StatusOr<ArtifactPage> ListArtifacts(int page_size,
                                                     const std::string& page_token) = 0;
  virtual absl::Status DeleteArtifact(const std::string& id) = 0;

  virtual absl::StatusOr<std::map<JobState, int64_t>> CountByState() = 0;
  // When the queued job that Lease gives next was created; nothing when none waits.
  virtual absl::StatusOr<std::optional<absl::Time>> OldestQueued() = 0;
};

}  // namespace quern

#endif  // QUERN_CORE_STORE_JOB_STORE_H_

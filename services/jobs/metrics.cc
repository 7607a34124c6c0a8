#include "services/jobs/metrics.h"

#include <quern/quantization/v1/quantization_service.pb.h>

#include <algorithm>

#include "core/base/error_reason.h"

namespace quern {
namespace {

// Silent for this long, a worker counts as down; after the second its row goes away.
constexpr absl::Duration kWorkerDown = absl::Minutes(2);
constexpr absl::Duration kWorkerForgotten = absl::Hours(1);
// Workers name themselves; more than this would be a mistake or an attack on the metrics.
constexpr size_t kMaxWorkers = 256;

const prometheus::Histogram::BucketBoundaries kQueueBuckets = {.1, .5,  1,   5,    10,    30,
                                                               60, 300, 900, 3600, 14400, 86400};
const prometheus::Histogram::BucketBoundaries kStoreBuckets = {
    .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10};

// Reasons come from workers: what is not known here shares one label.
constexpr char kOtherReason[] = "OTHER";

constexpr std::array<const char*, 7> kJobStoreOps = {"create", "cancel",  "delete",  "lease",
                                                     "renew",  "release", "complete"};

std::string ReasonLabel(const JobRecord& job) {
  if (job.state != JobState::kFailed) return "";
  quantization::v1::JobError error;
  if (!error.ParseFromString(job.error)) return kOtherReason;
  const bool known = std::binary_search(kErrorReasons.begin(), kErrorReasons.end(),
                                        absl::string_view(error.reason()));
  return known ? error.reason() : kOtherReason;
}

std::string StateLabel(JobState state) {
  return quantization::v1::QuantizationJob::State_Name(static_cast<int>(state));
}

prometheus::Counter& MakeCounter(prometheus::Registry& registry, const std::string& name,
                                 const std::string& help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

}  // namespace

JobsMetrics::JobsMetrics(prometheus::Registry& registry)
    : jobs_(prometheus::BuildGauge().Name("quern_jobs").Help("Jobs by state.").Register(registry)),
      finished_(prometheus::BuildCounter()
                    .Name("quern_jobs_finished_total")
                    .Help("Jobs that ended, by state and reason of failure.")
                    .Register(registry)),
      worker_up_(prometheus::BuildGauge()
                     .Name("quern_worker_up")
                     .Help("1 for a worker heard of in the last two minutes.")
                     .Register(registry)),
      store_bytes_(prometheus::BuildGauge()
                       .Name("quern_store_bytes")
                       .Help("Bytes in the artifact store.")
                       .Register(registry)),
      store_op_seconds_(prometheus::BuildHistogram()
                            .Name("quern_store_op_seconds")
                            .Help("Time of one operation of a store.")
                            .Register(registry)),
      store_blobs_(prometheus::BuildGauge()
                       .Name("quern_store_blobs")
                       .Help("Blobs in the artifact store.")
                       .Register(registry)
                       .Add({})),
      oldest_queued_(prometheus::BuildGauge()
                         .Name("quern_job_oldest_queued_seconds")
                         .Help("Since the creation of the oldest queued job; 0 when none waits.")
                         .Register(registry)
                         .Add({})),
      job_queue_seconds(prometheus::BuildHistogram()
                            .Name("quern_job_queue_seconds")
                            .Help("From the creation of a job to its first lease.")
                            .Register(registry)
                            .Add({}, kQueueBuckets)),
      leases_expired_total(
          MakeCounter(registry, "quern_leases_expired_total", "Leases that ran out.")),
      fenced_writes_total(MakeCounter(registry, "quern_fenced_writes_total",
                                      "Writes refused because their lease was lost.")),
      job_retries_total(MakeCounter(registry, "quern_job_retries_total",
                                    "Jobs queued again after a lost lease.")),
      dedupe_hits_total(MakeCounter(registry, "quern_dedupe_hits_total",
                                    "Creations answered with a job made before.")),
      store_verify_failures_total(MakeCounter(registry, "quern_store_verify_failures_total",
                                              "Uploads whose size, digest or manifest was wrong.")),
      store_gc_runs_total(
          MakeCounter(registry, "quern_store_gc_runs_total", "Runs of the blob collector.")),
      store_gc_bytes_freed_total(MakeCounter(registry, "quern_store_gc_bytes_freed_total",
                                             "Bytes of blobs that nothing named any more.")) {
  for (int state = 1; state <= 6; ++state) {
    jobs_.Add({{"state", StateLabel(static_cast<JobState>(state))}});
  }
  // A series that begins with its first failure would hide that failure from increase().
  for (const JobState state : {JobState::kSucceeded, JobState::kCancelled}) {
    finished_.Add({{"state", StateLabel(state)}, {"error_reason", ""}});
  }
  const std::string failed = StateLabel(JobState::kFailed);
  finished_.Add({{"state", failed}, {"error_reason", kOtherReason}});
  for (const absl::string_view reason : kErrorReasons) {
    finished_.Add({{"state", failed}, {"error_reason", std::string(reason)}});
  }
  for (const char* op : kJobStoreOps) StoreOp(op, "sqlite");
  StoreOp("commit_blob", "local");
}

void JobsMetrics::CountFinished(const JobRecord& job) {
  finished_.Add({{"state", StateLabel(job.state)}, {"error_reason", ReasonLabel(job)}}).Increment();
}

void JobsMetrics::MarkWorker(const std::string& worker, const std::string& device, absl::Time now) {
  MutexLock lock(&mutex_);
  auto found = workers_.find({worker, device});
  if (found == workers_.end()) {
    if (workers_.size() >= kMaxWorkers) return;
    prometheus::Gauge& up = worker_up_.Add({{"worker", worker}, {"device", device}});
    found = workers_.emplace(std::make_pair(worker, device), Worker{now, &up}).first;
  }
  found->second.last_seen = now;
  found->second.up->Set(1);
}

void JobsMetrics::ForgetWorkers(absl::Time now) {
  MutexLock lock(&mutex_);
  for (auto it = workers_.begin(); it != workers_.end();) {
    const absl::Duration silent = now - it->second.last_seen;
    if (silent > kWorkerForgotten) {
      worker_up_.Remove(it->second.up);
      it = workers_.erase(it);
      continue;
    }
    if (silent > kWorkerDown) it->second.up->Set(0);
    ++it;
  }
}

void JobsMetrics::SetJobs(const std::map<JobState, int64_t>& counts) {
  for (int number = 1; number <= 6; ++number) {
    const auto state = static_cast<JobState>(number);
    const auto found = counts.find(state);
    jobs_.Add({{"state", StateLabel(state)}})
        .Set(found == counts.end() ? 0 : static_cast<double>(found->second));
  }
}

void JobsMetrics::SetStore(const ArtifactStore::Usage& usage) {
  store_bytes_.Add({{"kind", "blobs"}}).Set(static_cast<double>(usage.bytes));
  store_blobs_.Set(static_cast<double>(usage.blobs));
}

prometheus::Histogram& JobsMetrics::StoreOp(const std::string& op, const std::string& backend) {
  return store_op_seconds_.Add({{"op", op}, {"backend", backend}}, kStoreBuckets);
}

}  // namespace quern

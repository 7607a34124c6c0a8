#include "services/worker/metrics.h"

#include <absl/time/clock.h>

namespace quern {
namespace {

using ProgressMessage = quantization::v1::Progress;

const prometheus::Histogram::BucketBoundaries kStageBuckets = {
    .1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400};

}  // namespace

WorkerMetrics::WorkerMetrics(prometheus::Registry& registry, const std::string& worker)
    : worker_(worker),
      worker_up_(prometheus::BuildGauge()
                     .Name("quern_worker_up")
                     .Help("1 while the worker runs.")
                     .Register(registry)),
      block_seconds_(prometheus::BuildHistogram()
                         .Name("quern_block_seconds")
                         .Help("Time to train one transformer block.")
                         .Register(registry)
                         .Add({}, kStageBuckets)),
      block_loss_(prometheus::BuildGauge()
                      .Name("quern_block_loss")
                      .Help("Loss of the transformer block trained last.")
                      .Register(registry)
                      .Add({})),
      progress_ratio_(prometheus::BuildGauge()
                          .Name("quern_job_progress_ratio")
                          .Help("Share of the running stage that is done.")
                          .Register(registry)
                          .Add({})),
      last_progress_(prometheus::BuildGauge()
                         .Name("quern_job_last_progress_timestamp_seconds")
                         .Help("When the running job last started or reported progress, Unix time; "
                               "0 while none runs.")
                         .Register(registry)
                         .Add({})),
      checkpoints_written_total_(prometheus::BuildCounter()
                                     .Name("quern_checkpoints_written_total")
                                     .Help("Finished blocks that a crash does not lose.")
                                     .Register(registry)
                                     .Add({})),
      quantizer_restarts_total(prometheus::BuildCounter()
                                   .Name("quern_quantizer_restarts_total")
                                   .Help("Quantizers started again after a crash, on one lease.")
                                   .Register(registry)
                                   .Add({})),
      leases_lost_total(prometheus::BuildCounter()
                            .Name("quern_leases_lost_total")
                            .Help("Leases that this worker lost.")
                            .Register(registry)
                            .Add({})) {
  auto& running = prometheus::BuildGauge()
                      .Name("quern_job_stage_running")
                      .Help("1 for the stage that the running job is in.")
                      .Register(registry);
  auto& seconds = prometheus::BuildHistogram()
                      .Name("quern_job_stage_seconds")
                      .Help("Time of one stage of a job.")
                      .Register(registry);
  for (int stage = ProgressMessage::LOADING; stage <= ProgressMessage::Stage_MAX; ++stage) {
    const prometheus::Labels labels = {
        {"stage", ProgressMessage::Stage_Name(static_cast<ProgressMessage::Stage>(stage))}};
    stage_running_[stage] = &running.Add(labels);
    stage_seconds_[stage] = &seconds.Add(labels, kStageBuckets);
  }
}

void WorkerMetrics::SetDevice(const std::string& device) {
  MutexLock lock(&mutex_);
  if (device == device_) return;
  if (up_ != nullptr) worker_up_.Remove(up_);
  device_ = device;
  up_ = &worker_up_.Add({{"worker", worker_}, {"device", device}});
  up_->Set(1);
}

void WorkerMetrics::StartJob() {
  MutexLock lock(&mutex_);
  last_.Clear();
  stage_start_ = unit_start_ = absl::Now();
  progress_ratio_.Set(0);
  last_progress_.Set(absl::ToDoubleSeconds(stage_start_ - absl::UnixEpoch()));
}

void WorkerMetrics::EndStage(absl::Time now) {
  if (last_.stage() == ProgressMessage::STAGE_UNSPECIFIED) return;
  stage_seconds_[last_.stage()]->Observe(absl::ToDoubleSeconds(now - stage_start_));
}

void WorkerMetrics::SetRunning(ProgressMessage::Stage stage) {
  for (int i = ProgressMessage::LOADING; i <= ProgressMessage::Stage_MAX; ++i) {
    stage_running_[i]->Set(i == stage ? 1 : 0);
  }
}

void WorkerMetrics::Progress(const ProgressMessage& progress) {
  if (!ProgressMessage::Stage_IsValid(progress.stage())) return;
  MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  const bool same_stage = progress.stage() == last_.stage();
  if (!same_stage) {
    EndStage(now);
    SetRunning(progress.stage());
    stage_start_ = now;
    unit_start_ = now;
  }
  // The first report of a stage says where it starts, which may be after blocks of an earlier run.
  if (progress.stage() == ProgressMessage::BLOCK_AP && same_stage &&
      progress.completed_count() > last_.completed_count()) {
    const auto blocks = static_cast<double>(progress.completed_count() - last_.completed_count());
    checkpoints_written_total_.Increment(blocks);
    block_seconds_.Observe(absl::ToDoubleSeconds(now - unit_start_) / blocks);
    if (progress.has_loss()) block_loss_.Set(progress.loss());
    unit_start_ = now;
  }
  if (progress.total_count() > 0) {
    progress_ratio_.Set(static_cast<double>(progress.completed_count()) /
                        static_cast<double>(progress.total_count()));
  }
  last_progress_.Set(absl::ToDoubleSeconds(now - absl::UnixEpoch()));
  last_ = progress;
}

void WorkerMetrics::EndJob() {
  MutexLock lock(&mutex_);
  EndStage(absl::Now());
  last_.Clear();
  SetRunning(ProgressMessage::STAGE_UNSPECIFIED);
  progress_ratio_.Set(0);
  last_progress_.Set(0);
}

}  // namespace quern

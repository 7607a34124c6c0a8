// The figures of a scrape against what was really done.

#include "tests/services/jobs/jobs_fixture.h"
#include "tests/support/temp_directory.h"

namespace quern {
namespace {

using JobsMetricsTest = JobsServerTest;

TEST_F(JobsMetricsTest, CountWhatHappened) {
  auto request = CreateRequest();
  request.set_request_id("id-1");
  ASSERT_OK(Create(request));
  ASSERT_OK(Create(request));  // the same job again
  clock_.Advance(absl::Seconds(20));
  const worker::v1::Lease first = Lease("request-1");
  const std::string path = MakeArtifact("a");
  const std::string artifact = Stage(first.token(), path).value();
  ASSERT_OK(Succeed(first.token(), artifact));
  ASSERT_OK(Succeed(first.token(), artifact));  // counts once

  const std::string failing = CreateName();
  ASSERT_OK(Complete(ErrorRequest(Lease("request-2").token(), 13, "CHECKPOINT_DAMAGED")));
  CreateName();
  ASSERT_OK(Complete(ErrorRequest(Lease("request-3").token(), 13, "SOMETHING_NEW")));
  ASSERT_OK(Cancel(CreateName()));

  const std::string lost = CreateName();
  const worker::v1::Lease zombie = Lease("request-4");
  clock_.Advance(absl::Minutes(1));
  ASSERT_TRUE(Eventually([&] { return Get(lost).value().state() == Job::QUEUED; }));
  EXPECT_TRUE(absl::IsAborted(RenewWithProgress(zombie.token(), 1)));
  auto damaged = StageMessages(Lease("request-5").token(), path);
  damaged[0].mutable_header()->mutable_files(0)->set_sha256(std::string(64, '0'));
  EXPECT_FALSE(Stage(damaged).ok());

  CreateName();
  clock_.Advance(absl::Seconds(7));
  CreateName();
  const std::string scrape = Scrape();
  const auto value = [&](const std::string& series) { return ScrapedValue(scrape, series); };
  EXPECT_EQ(value("quern_jobs{state=\"SUCCEEDED\"}"), 1);
  EXPECT_EQ(value("quern_jobs{state=\"FAILED\"}"), 2);
  EXPECT_EQ(value("quern_jobs{state=\"CANCELLED\"}"), 1);
  EXPECT_EQ(value("quern_jobs{state=\"RUNNING\"}"), 1);
  EXPECT_EQ(value("quern_jobs{state=\"QUEUED\"}"), 2);
  EXPECT_EQ(value("quern_job_oldest_queued_seconds"), 7);
  const std::string finished = "quern_jobs_finished_total{error_reason=";
  EXPECT_EQ(value(finished + "\"\",state=\"SUCCEEDED\"}"), 1);
  EXPECT_EQ(value(finished + "\"CHECKPOINT_DAMAGED\",state=\"FAILED\"}"), 1);
  EXPECT_EQ(value(finished + "\"OTHER\",state=\"FAILED\"}"), 1);
  EXPECT_EQ(value(finished + "\"OUT_OF_MEMORY\",state=\"FAILED\"}"), 0);
  EXPECT_EQ(value(finished + "\"\",state=\"CANCELLED\"}"), 1);
  EXPECT_EQ(value("quern_dedupe_hits_total"), 1);
  EXPECT_EQ(value("quern_leases_expired_total"), 1);
  EXPECT_EQ(value("quern_job_retries_total"), 1);
  EXPECT_EQ(value("quern_fenced_writes_total"), 1);
  EXPECT_EQ(value("quern_store_verify_failures_total"), 1);
  EXPECT_EQ(value("quern_store_gc_runs_total"), 1);
  EXPECT_EQ(value("quern_job_queue_seconds_count"), 4);
  EXPECT_EQ(value("quern_job_queue_seconds_sum"), 20);
  EXPECT_EQ(value("quern_worker_up{device=\"cpu\",worker=\"worker-a\"}"), 1);
  EXPECT_EQ(value("quern_store_op_seconds_count{backend=\"sqlite\",op=\"create\"}"), 7);
  EXPECT_GT(value("quern_store_op_seconds_count{backend=\"local\",op=\"commit_blob\"}"), 2);

  int64_t num_files = 0;
  int64_t num_bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    ++num_files;
    num_bytes += static_cast<int64_t>(entry.file_size());
  }
  EXPECT_EQ(value("quern_build_info{program=\"quern-jobs\",version=\"" QUERN_VERSION "\"}"), 1);
  EXPECT_GT(value("process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(value("quern_disk_free_bytes{directory=\"data\"}"), 0);
  EXPECT_EQ(value("quern_store_blobs"), num_files);
  EXPECT_EQ(value("quern_store_bytes{kind=\"blobs\"}"), num_bytes);

  const std::string create =
      "grpc_method=\"CreateQuantizationJob\",grpc_service=\"quern.quantization.v1."
      "QuantizationService\",grpc_type=\"unary\"}";
  EXPECT_EQ(value("grpc_server_handled_total{grpc_code=\"OK\"," + create), 8);
  const std::string stage =
      "grpc_method=\"StageArtifact\",grpc_service=\"quern.worker.v1.WorkerService\",grpc_type="
      "\"client_stream\"}";
  EXPECT_EQ(value("grpc_server_handled_total{grpc_code=\"OK\"," + stage), 1);
  EXPECT_EQ(value("grpc_server_handled_total{grpc_code=\"INVALID_ARGUMENT\"," + stage), 1);
}

TEST_F(JobsMetricsTest, CollectedGarbageIsCounted) {
  CreateName();
  const std::string path = MakeArtifact("a");
  ASSERT_OK(Stage(Lease().token(), path));
  Start();
  EXPECT_GT(ScrapedValue(Scrape(), "quern_store_gc_bytes_freed_total"), 1000);
  EXPECT_EQ(ScrapedValue(Scrape(), "quern_store_blobs"), 0);
}

TEST_F(JobsMetricsTest, ThousandJobsOfAThousandWorkersStaySmall) {
  // In memory: on a busy disk thousands of commits take minutes.
  const TempDirectory memory("/dev/shm");
  config_.data_directory = memory.Path("data");
  Start();
  for (int i = 0; i < 1000; ++i) {
    auto request = CreateRequest();
    request.set_request_id(absl::StrCat("id-", i));
    ASSERT_OK(Create(request));
    auto lease = LeaseRequest(absl::StrCat("request-", i));
    lease.set_worker(absl::StrCat("worker-", i));
    ASSERT_OK_AND_ASSIGN(const worker::v1::LeaseJobResponse response, LeaseJob(lease));
    const std::string reason = absl::StrCat("REASON_", i);
    ASSERT_OK(Complete(ErrorRequest(response.lease().token(), 13, reason)));
  }
  const std::string scrape = Scrape();
  EXPECT_EQ(ScrapedValue(scrape, "quern_jobs{state=\"FAILED\"}"), 1000);
  EXPECT_EQ(ScrapedValue(scrape, "quern_job_oldest_queued_seconds"), 0);
  EXPECT_EQ(
      ScrapedValue(scrape, "quern_jobs_finished_total{error_reason=\"OTHER\",state=\"FAILED\"}"),
      1000);
  ExpectSmallScrape(server_->metrics_address());
  server_.reset();
}

TEST_F(JobsMetricsTest, ReadyUntilShutdown) {
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/readyz"), testing::StartsWith("HTTP/1.1 200"));
  server_->Shutdown();
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/readyz"), testing::StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/healthz"), testing::StartsWith("HTTP/1.1 200"));
}

}  // namespace
}  // namespace quern

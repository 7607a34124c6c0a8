#include "services/worker/config.h"

#include "core/base/machine.h"
#include "services/worker/capabilities.h"
#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

TEST(WorkerConfigTest, EachFlagIsChecked) {
  const ScratchDirectory directory;
  WorkerConfig good;
  good.work_directory = directory / "work";
  good.model_root = directory.path();
  good.data_root = directory.path();
  good.quantizer = "/bin/sh";
  good.name = DefaultWorkerName();
  ASSERT_OK(good.Validate());
  const auto refused = [&](const std::string& flag, void (*change)(WorkerConfig&)) {
    WorkerConfig config = good;
    change(config);
    EXPECT_THAT(std::string(config.Validate().message()), HasSubstr(flag));
  };
  refused("--jobs", [](WorkerConfig& c) { c.jobs = "nope"; });
  refused("--jobs", [](WorkerConfig& c) { c.jobs = "example.com:7400"; });
  refused("--metrics-listen", [](WorkerConfig& c) { c.metrics_listen = "0.0.0.0:1"; });
  refused("--work-directory", [](WorkerConfig& c) { c.work_directory = ""; });
  refused("--model-root", [](WorkerConfig& c) { c.model_root = "/nope"; });
  refused("--data-root", [](WorkerConfig& c) { c.data_root = ""; });
  refused("--quantizer", [](WorkerConfig& c) { c.quantizer = "/nope"; });
  refused("--threads", [](WorkerConfig& c) { c.threads = -1; });
  refused("--device", [](WorkerConfig& c) { c.device = "tpu"; });
  refused("--name", [](WorkerConfig& c) { c.name = "a b"; });
  refused("--name", [](WorkerConfig& c) { c.name = std::string(64, 'a'); });
}

TEST(CapabilitiesTest, AreThoseOfThisMachine) {
  const auto capabilities = ReadCpuCapabilities();
  EXPECT_EQ(capabilities.device(), worker::v1::WorkerCapabilities::CPU);
  EXPECT_EQ(capabilities.memory_bytes(), AvailableMemoryBytes());
}

}  // namespace
}  // namespace quern

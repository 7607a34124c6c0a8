#ifndef QUERN_TESTS_E2E_DEPLOYMENT_H_
#define QUERN_TESTS_E2E_DEPLOYMENT_H_

// The three services as a user runs them: the real programs, on free loopback ports, with a
// directory of their own.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>
#include <grpcpp/channel.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/base/subprocess.h"

namespace quern {

// Long enough for a loaded machine and for sanitizers: a test that waits for it has failed.
absl::Time E2eDeadline();

// One running service.
struct Service {
  std::unique_ptr<Subprocess> process;
  std::string grpc_address;  // empty for the worker
  std::string http_address;  // of quern-inference alone
  std::string metrics_address;
};

class Deployment {
 public:
  // Makes a directory with models/ (the model root), texts/ (the data root) and data directories.
  Deployment();
  ~Deployment();

  std::string model_root() const { return root_ + "/models"; }
  std::string data_root() const { return root_ + "/texts"; }
  std::string jobs_data() const { return root_ + "/jobs"; }
  std::string work_directory() const { return root_ + "/work"; }
  std::string cache_directory() const { return root_ + "/cache"; }
  const std::string& root() const { return root_; }

  // Each waits until the service says it is ready. `extra` flags come last and win.
  absl::Status StartJobs(const std::vector<std::string>& extra = {});
  absl::Status StartWorker(const std::vector<std::string>& extra = {});
  absl::Status StartInference(const std::vector<std::string>& extra = {});
  absl::Status StartAll();

  Service& jobs() { return services_.at("quern-jobs"); }
  Service& worker() { return services_.at("quern-worker"); }
  Service& inference() { return services_.at("quern-inference"); }

  std::shared_ptr<grpc::Channel> JobsChannel();
  std::shared_ptr<grpc::Channel> InferenceChannel();

 private:
  absl::Status Start(const std::string& program, std::vector<std::string> flags,
                     const std::vector<std::string>& extra);

  std::string root_;
  std::map<std::string, Service> services_;
};

// Path of one of our programs: $QUERN_BIN_DIR/name.
std::string ProgramPath(const std::string& name);

// Waits until `path` exists or the deadline passes (inotify, no polling).
absl::Status WaitForFile(const std::string& path, absl::Time deadline);

// Body of http://address/path; an error status for other answers than 200.
absl::StatusOr<std::string> HttpGet(const std::string& address, const std::string& path);

// The sample of `series` ("name" or "name{label=\"value\"}") in Prometheus text; NOT_FOUND.
absl::StatusOr<double> MetricValue(const std::string& text, const std::string& series);

}  // namespace quern

#endif  // QUERN_TESTS_E2E_DEPLOYMENT_H_

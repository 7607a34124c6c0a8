#include <absl/algorithm/container.h>
#include <absl/strings/ascii.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>
#include <absl/time/clock.h>
#include <arpa/inet.h>
#include <sys/socket.h>

#include <map>
#include <set>

#include "core/base/file.h"
#include "services/cli/doctor.h"
#include "services/cli/format.h"
#include "services/cli/health.h"
#include "services/cli/http.h"
#include "services/cli/scrape.h"
#include "services/common/address.h"

namespace quern::cli {
namespace {

// Of the clocks of two machines; the Date header has whole seconds.
constexpr absl::Duration kMaxSkew = absl::Seconds(3);
constexpr char kStartAdvice[] = "look at its log; start it with `quern up` or as it is deployed";

constexpr absl::string_view kDefaultAddresses[] = {
    kJobsAddress,      kJobsMetricsAddress,      kWorkerMetricsAddress,
    kInferenceAddress, kInferenceMetricsAddress, kInferenceHttpAddress};

// Whether a service of this machine could listen at an IPv4 address; nothing is sent to anyone.
bool PortIsFree(absl::string_view text) {
  const absl::StatusOr<HostPort> address = ParseHostPort(text);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  if (!address.ok() || inet_pton(AF_INET, address->host.c_str(), &to.sin_addr) != 1) return true;
  to.sin_port = htons(static_cast<uint16_t>(address->port));
  const FileDescriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  // As the services do: a port whose last connections are still closing is free.
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  return bind(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0;
}

struct Service {
  const char* name;
  const char* grpc_service;  // its own, of the gRPC port
  std::string grpc;          // empty: it has none
  std::string metrics;
};

// The checks of one deployment.
class Deployment {
 public:
  Deployment(const DoctorOptions& options, const Context& context, Findings& findings)
      : options_(options), context_(context), findings_(findings) {}

  void Check() {
    if (!FindServices()) return;
    if (!Expected()) {
      findings_.Skip("services", "none is named, and nothing listens where they do by default",
                     "start them with `quern up`, or name them with --jobs and --inference");
      return CheckPorts();
    }
    CheckProxy();
    for (const Service& service : services_) {
      if (!service.grpc.empty()) CheckGrpc(service);
      CheckMetrics(service);
    }
    CheckVersions();
    CheckPorts();
  }

 private:
  // False, with a finding, when the addresses cannot be read.
  bool FindServices();
  // Whether anything should answer: an address is named or recorded, or a default port is taken.
  bool Expected() const;
  void CheckProxy();
  void CheckGrpc(const Service& service);
  void CheckMetrics(const Service& service);
  void CheckWorkers(const std::vector<Sample>& samples, const std::string& address);
  void CheckSkew(const Service& service, absl::Time server, absl::Time before);
  void CheckVersions();
  void CheckPorts();

  const DoctorOptions& options_;
  const Context& context_;
  Findings& findings_;
  std::vector<Service> services_;
  std::set<std::string> ours_;                   // addresses where our services answered
  std::map<std::string, std::string> versions_;  // by program
};

bool Deployment::FindServices() {
  const GlobalOptions& global = context_.options();
  const auto address = [this](absl::string_view flag, absl::string_view key,
                              absl::string_view fallback) {
    return context_.Address(flag, key, fallback);
  };
  const auto jobs = address(global.jobs, "jobs", kJobsAddress);
  const auto jobs_metrics = address(options_.jobs_metrics, "jobs_metrics", kJobsMetricsAddress);
  const auto worker = address(options_.worker_metrics, "worker_metrics", kWorkerMetricsAddress);
  const auto inference = address(global.inference, "inference", kInferenceAddress);
  const auto inference_metrics =
      address(options_.inference_metrics, "inference_metrics", kInferenceMetricsAddress);
  for (const auto* found : {&jobs, &jobs_metrics, &worker, &inference, &inference_metrics}) {
    if (found->ok()) continue;
    findings_.Problem("addresses", std::string(found->status().message()),
                      absl::StrCat("a file that `quern up` wrote at ", context_.addresses_path()),
                      "remove it and start `quern up` again");
    return false;
  }
  services_ = {
      {"quern-jobs", "quern.quantization.v1.QuantizationService", *jobs, *jobs_metrics},
      {"quern-worker", "", "", *worker},
      {"quern-inference", "quern.inference.v1.InferenceService", *inference, *inference_metrics}};
  return true;
}

bool Deployment::Expected() const {
  for (const Service& service : services_) {
    for (const std::string& address : {service.grpc, service.metrics}) {
      if (!address.empty() && !absl::c_linear_search(kDefaultAddresses, address)) return true;
    }
  }
  // `quern up --fixed-ports` records the same addresses.
  return context_.Recorded("jobs").ok() || !absl::c_all_of(kDefaultAddresses, PortIsFree);
}

void Deployment::CheckProxy() {
  const Environment& environment = context_.environment();
  if (environment.proxy.empty()) return;
  for (const Service& service : services_) {
    const absl::StatusOr<HostPort> address = ParseHostPort(service.grpc);
    if (!address.ok() || ProxyIsBypassed(environment.proxy_except, address->host)) continue;
    return findings_.Warn(
        "proxy", absl::StrCat("the environment sends gRPC to ", address->host, " through a proxy"),
        "direct connections to the services",
        absl::StrCat("add ", address->host, " to no_proxy (grpc_proxy, https_proxy and http_proxy ",
                     "apply to gRPC)"));
  }
}

void Deployment::CheckGrpc(const Service& service) {
  const absl::Status health = CheckHealth(service.grpc, service.grpc_service,
                                          context_.options().security, options_.timeout);
  if (health.ok()) {
    ours_.insert(service.grpc);
    return findings_.Ok(service.name, absl::StrCat(service.grpc, " is SERVING"));
  }
  findings_.Problem(service.name, std::string(health.message()),
                    absl::StrCat(service.grpc_service, " SERVING"),
                    absl::IsNotFound(health)
                        ? "another gRPC server, or an older version, has this port: correct the "
                          "address"
                        : kStartAdvice);
}

void Deployment::CheckMetrics(const Service& service) {
  const std::string check = absl::StrCat(absl::StripPrefix(service.name, "quern-"), " metrics");
  const ChannelSecurity& security = context_.options().security;
  const absl::StatusOr<HostPort> address = ParseHostPort(service.metrics);
  // On loopback metrics are plain whatever the service's settings.
  const bool tls = !security.tls_ca.empty() && address.ok() && !IsLoopback(address->host);
  const std::string url = absl::StrCat(tls ? "https://" : "http://", service.metrics);
  const absl::Time before = absl::Now();
  const absl::StatusOr<HttpAnswer> answer =
      HttpGet(absl::StrCat(url, "/metrics"), security, options_.timeout);
  if (!answer.ok() || answer->status != 200) {
    return findings_.Problem(
        check,
        answer.ok() ? absl::StrCat(url, "/metrics: HTTP ", answer->status)
                    : std::string(answer.status().message()),
        absl::StrCat("the metrics of ", service.name),
        absl::StrCat(kStartAdvice, "; correct the address with --",
                     absl::StrCat(absl::StripPrefix(service.name, "quern-"), "-metrics")));
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - before);
  const std::vector<Sample> samples = ParseScrape(answer->body);
  for (const Sample& sample : samples) {
    if (sample.name != "quern_build_info") continue;
    const auto program = sample.labels.find("program");
    const auto version = sample.labels.find("version");
    if (program == sample.labels.end() || program->second != service.name) continue;
    if (version != sample.labels.end()) versions_[service.name] = version->second;
  }
  if (!versions_.contains(service.name)) {
    return findings_.Problem(
        check, absl::StrCat(service.metrics, " has no quern_build_info of ", service.name),
        absl::StrCat("the metrics of ", service.name, " ", QUERN_VERSION),
        "correct the address, or upgrade the service");
  }
  ours_.insert(service.metrics);
  const absl::Status ready =
      CheckHealth(absl::StrCat(url, "/readyz"), "", security, options_.timeout);
  if (!ready.ok()) {
    return findings_.Problem(check, std::string(ready.message()), "HTTP 200 from /readyz",
                             "look at its log: it runs, but takes no work now");
  }
  findings_.Ok(check,
               absl::StrFormat("%s is ready; %s samples in %.0f ms", service.metrics,
                               FormatCount(static_cast<int64_t>(samples.size())), seconds * 1000));
  if (absl::string_view(service.name) == "quern-worker") CheckWorkers(samples, service.metrics);
  CheckSkew(service, answer->server_time, before);
}

void Deployment::CheckWorkers(const std::vector<Sample>& samples, const std::string& address) {
  std::vector<std::string> up;
  for (const Sample& sample : samples) {
    if (sample.name != "quern_worker_up" || sample.value != 1) continue;
    const auto label = [&sample](const char* key) {
      const auto found = sample.labels.find(key);
      return found == sample.labels.end() ? std::string("?") : found->second;
    };
    up.push_back(absl::StrCat(label("worker"), " on ", label("device")));
  }
  if (!up.empty()) return findings_.Ok("workers", absl::StrCat(absl::StrJoin(up, ", "), " is up"));
  findings_.Problem("workers", absl::StrCat(address, " has no quern_worker_up of 1"),
                    "a worker that is up: jobs stay QUEUED without one", "look at its log");
}

void Deployment::CheckSkew(const Service& service, absl::Time server, absl::Time before) {
  if (server == absl::InfinitePast()) return;
  // The header says when the answer was made, cut to the second.
  const absl::Time after = absl::Now();
  const absl::Duration early = before - kMaxSkew - server;
  const absl::Duration late = server - after - kMaxSkew;
  if (early <= absl::ZeroDuration() && late <= absl::ZeroDuration()) return;
  findings_.Warn("clocks",
                 absl::StrCat("the clock of ", service.name, " is ",
                              absl::FormatDuration(absl::Trunc(absl::AbsDuration(server - before),
                                                               absl::Seconds(1))),
                              server < before ? " behind this one" : " before this one"),
                 absl::StrCat("at most ", absl::FormatDuration(kMaxSkew), " between machines"),
                 "synchronise both with NTP");
}

void Deployment::CheckVersions() {
  std::vector<std::string> others;
  for (const auto& [program, version] : versions_) {
    if (version != QUERN_VERSION) others.push_back(absl::StrCat(program, " ", version));
  }
  if (versions_.empty()) return;
  if (others.empty()) {
    return findings_.Ok("versions", absl::StrCat(QUERN_VERSION, " here and there"));
  }
  findings_.Problem("versions",
                    absl::StrCat("quern ", QUERN_VERSION, " here, ", absl::StrJoin(others, ", ")),
                    "one version everywhere", "upgrade what is older, quern-jobs first");
}

void Deployment::CheckPorts() {
  std::vector<std::string> ours;
  std::vector<std::string> free;
  std::vector<std::string> taken;
  for (const absl::string_view address : kDefaultAddresses) {
    const std::string port(address.substr(address.rfind(':') + 1));
    if (ours_.contains(std::string(address))) {
      ours.push_back(port);
    } else if (PortIsFree(address)) {
      free.push_back(port);
    } else {
      taken.push_back(port);
    }
  }
  std::vector<std::string> parts;
  if (!ours.empty()) parts.push_back(absl::StrCat(absl::StrJoin(ours, ", "), " ours"));
  if (!free.empty()) parts.push_back(absl::StrCat(absl::StrJoin(free, ", "), " free"));
  if (!taken.empty()) parts.push_back(absl::StrCat(absl::StrJoin(taken, ", "), " taken"));
  const std::string found = absl::StrJoin(parts, "; ");
  if (taken.empty()) return findings_.Ok("default ports", found);
  findings_.Warn(
      "default ports", found,
      "the ports of the services' defaults and of `quern up --fixed-ports`, free or "
      "ours",
      absl::StrCat("see who has them (ss -ltnp sport = :", taken.front(),
                   "), or choose others with --listen, --http-listen and --metrics-listen"));
}

}  // namespace

bool ProxyIsBypassed(absl::string_view proxy_except, absl::string_view host) {
  for (absl::string_view entry : absl::StrSplit(proxy_except, ',', absl::SkipWhitespace())) {
    // As gRPC reads it: the end of the name, whatever the case.
    if (absl::EndsWithIgnoreCase(host, absl::StripAsciiWhitespace(entry))) return true;
  }
  return false;
}

void CheckDeployment(const DoctorOptions& options, const Context& context, Findings& findings) {
  Deployment(options, context, findings).Check();
  if (options.prometheus.empty()) {
    return findings.Skip("prometheus", "not asked", "name it with --prometheus http://HOST:PORT");
  }
  CheckPrometheus(options.prometheus, options.timeout, findings);
}

}  // namespace quern::cli

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/strip.h>

#include "core/base/status_macros.h"
#include "services/cli/doctor.h"
#include "services/cli/http.h"

namespace quern::cli {
namespace {

struct ScrapeTarget {
  std::string url;
  std::string health;  // "up", "down", or "unknown" until it was tried once
  std::string error;
  double seconds = 0;
};

// The targets of one job, of the answer of /api/v1/targets.
absl::StatusOr<std::vector<ScrapeTarget>> TargetsOf(const Json& answer, absl::string_view job) {
  ASSIGN_OR_RETURN(const JsonObject top, JsonObject::Of(answer, "/api/v1/targets"));
  ASSIGN_OR_RETURN(const JsonObject data, top.Object("data"));
  ASSIGN_OR_RETURN(const Json* all, data.Array("activeTargets"));
  std::vector<ScrapeTarget> targets;
  for (const Json& item : *all) {
    ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(item, "activeTargets"));
    ASSIGN_OR_RETURN(const JsonObject labels, object.Object("labels"));
    ASSIGN_OR_RETURN(const std::string name, labels.StringOr("job", ""));
    if (name != job) continue;
    ScrapeTarget target;
    ASSIGN_OR_RETURN(target.url, object.String("scrapeUrl"));
    ASSIGN_OR_RETURN(target.health, object.String("health"));
    ASSIGN_OR_RETURN(target.error, object.StringOr("lastError", ""));
    ASSIGN_OR_RETURN(target.seconds, object.NumberOr("lastScrapeDuration", 0, 1e6, 0));
    targets.push_back(std::move(target));
  }
  return targets;
}

absl::StatusOr<Json> AskTargets(const std::string& url, absl::Duration timeout) {
  ASSIGN_OR_RETURN(const HttpAnswer answer, HttpGet(url, {}, timeout));
  if (answer.status != 200) {
    return absl::UnavailableError(absl::StrCat(url, ": HTTP ", answer.status));
  }
  return ParseJson(answer.body, url);
}

}  // namespace

void CheckPrometheus(const std::string& url, absl::Duration timeout, Findings& findings) {
  const absl::StatusOr<Json> answer = AskTargets(
      absl::StrCat(absl::StripSuffix(url, "/"), "/api/v1/targets?state=active"), timeout);
  if (!answer.ok()) {
    return findings.Problem("prometheus", std::string(answer.status().message()),
                            "a Prometheus server", "start it, or correct --prometheus");
  }
  for (const char* job : {"quern-jobs", "quern-worker", "quern-inference"}) {
    const std::string check = absl::StrCat("scrape ", absl::StripPrefix(job, "quern-"));
    const absl::StatusOr<std::vector<ScrapeTarget>> targets = TargetsOf(*answer, job);
    if (!targets.ok()) {
      return findings.Problem("prometheus", std::string(targets.status().message()),
                              "the answer of a Prometheus server", "correct --prometheus");
    }
    if (targets->empty()) {
      findings.Problem(check, absl::StrCat("no target of the job ", job),
                       "a target for each service",
                       "take the job from deploy/prometheus/prometheus.yml and reload");
    }
    for (const ScrapeTarget& target : *targets) {
      if (target.health == "up") {
        findings.Ok(check, absl::StrFormat("%s in %.0f ms", target.url, target.seconds * 1000));
      } else {
        findings.Problem(check, absl::StrCat(target.url, " is ", target.health, ": ", target.error),
                         "up", "correct the target's address, or start the service");
      }
    }
  }
}

}  // namespace quern::cli

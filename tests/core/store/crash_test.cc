// kill -9 at random moments: what was acknowledged is there afterwards.

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/core/store/job_store_fixture.h"

namespace quern {
namespace {

constexpr int kKills = 60;

// The child: submits with keys that continue from `next`, runs leases too, and acknowledges each
// key on `out` after the store has. Never returns.
[[noreturn]] void SubmitForEver(const std::string& directory, int next, int out) {
  SystemClock clock;
  auto store = SqliteJobStore::Open({.data_directory = directory}, clock);
  if (!store.ok()) _exit(3);
  for (int key = next;; ++key) {
    const std::string request = absl::StrCat("key-", key);
    const auto job = (*store)->Create(absl::StrCat("spec of ", request), request, request);
    if (!job.ok()) _exit(4);
    const std::string line = absl::StrCat(key, " ", job->id, "\n");
    if (write(out, line.data(), line.size()) != static_cast<ssize_t>(line.size())) _exit(5);
    // Every third job is also leased and ended, so that kills hit those transactions too.
    if (key % 3 != 0) continue;
    const auto grant = (*store)->Lease("w", request, absl::Hours(1));
    if (!grant.ok() || !grant->has_value()) _exit(6);
    if (!(*store)->Complete((*grant)->token, JobState::kSucceeded, request, "r", "", "").ok()) {
      _exit(7);
    }
  }
}

// Reads what the child acknowledges until there are `num_acks`, goes on for `milliseconds`, kills
// it, and reads the rest.
std::string RunAndKill(pid_t child, int in, int num_acks, int milliseconds) {
  std::string acks;
  while (true) {
    const bool enough = std::count(acks.begin(), acks.end(), '\n') >= num_acks;
    struct pollfd poll_fd = {in, POLLIN, 0};
    if (enough && (milliseconds == 0 || poll(&poll_fd, 1, milliseconds) == 0)) break;
    // After `num_acks` an ack that comes in time counts, and ends the waiting.
    if (enough) milliseconds = 0;
    char bytes[4096];
    const ssize_t got = read(in, bytes, sizeof(bytes));
    if (got <= 0) return acks;
    acks.append(bytes, static_cast<size_t>(got));
  }
  kill(child, SIGKILL);
  char bytes[4096];
  ssize_t got = 0;
  while ((got = read(in, bytes, sizeof(bytes))) > 0) acks.append(bytes, static_cast<size_t>(got));
  return acks;
}

TEST(CrashTest, AcknowledgedJobsSurviveKills) {
  const ScratchDirectory directory;
  std::map<int, std::string> acknowledged;
  std::mt19937 random(7);
  std::uniform_int_distribution<int> acks_before_kill(0, 8);
  std::uniform_int_distribution<int> more_milliseconds(0, 9);
  for (int kill_count = 0; kill_count < kKills; ++kill_count) {
    const int next = acknowledged.empty() ? 0 : acknowledged.rbegin()->first + 1;
    int fds[2];
    ASSERT_EQ(pipe(fds), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(fds[0]);
      SubmitForEver(directory.path(), next, fds[1]);
    }
    close(fds[1]);
    const std::string acks =
        RunAndKill(child, fds[0], acks_before_kill(random), more_milliseconds(random));
    close(fds[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "child ended by itself: " << WEXITSTATUS(status);
    std::vector<std::string> lines = absl::StrSplit(acks, '\n');
    lines.pop_back();  // after the last '\n': nothing, or half a line
    for (const std::string& line : lines) {
      const std::vector<std::string> parts = absl::StrSplit(line, ' ');
      int key = 0;
      ASSERT_TRUE(parts.size() == 2 && absl::SimpleAtoi(parts[0], &key)) << line;
      acknowledged[key] = parts[1];
    }
  }
  ASSERT_GT(acknowledged.size(), 100u);

  SystemClock clock;
  ASSERT_OK_AND_ASSIGN(auto store,
                       SqliteJobStore::Open({.data_directory = directory.path()}, clock));
  for (const auto& [key, id] : acknowledged) {
    const absl::StatusOr<JobRecord> job = store->Get(id);
    ASSERT_OK(job) << "lost: key " << key;
    EXPECT_EQ(job->spec, absl::StrCat("spec of key-", key));
    // Asking again gives the same job: none was made twice.
    const std::string request = absl::StrCat("key-", key);
    EXPECT_EQ(store->Create("", request, request).value().id, id);
    if (job->state == JobState::kSucceeded) {
      EXPECT_OK(store->GetArtifact(job->artifact));
    }
  }
  // At most one job a kill was made and not acknowledged.
  int64_t total = 0;
  ASSERT_OK_AND_ASSIGN(const auto counts, store->CountByState());
  for (const auto& [state, count] : counts) total += count;
  EXPECT_GE(total, static_cast<int64_t>(acknowledged.size()));
  EXPECT_LE(total, static_cast<int64_t>(acknowledged.size()) + kKills);
  RecordProperty("acknowledged", static_cast<int>(acknowledged.size()));
}

}  // namespace
}  // namespace quern

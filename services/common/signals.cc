#include "services/common/signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <thread>

#include "core/base/log.h"

namespace quern {
namespace {

sigset_t ShutdownSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

}  // namespace

void BlockShutdownSignals() {
  const sigset_t signals = ShutdownSignals();
  CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  signal(SIGPIPE, SIG_IGN);
}

int WaitForOneShutdownSignal() {
  const sigset_t signals = ShutdownSignals();
  int number = 0;
  CHECK(sigwait(&signals, &number) == 0);
  return number;
}

int WaitForShutdownSignal() {
  const sigset_t signals = ShutdownSignals();
  const int number = WaitForOneShutdownSignal();
  std::thread([signals] {
    int second = 0;
    if (sigwait(&signals, &second) == 0) _exit(128 + second);
  }).detach();
  return number;
}

}  // namespace quern

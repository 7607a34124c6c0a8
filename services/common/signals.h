#ifndef QUERN_SERVICES_COMMON_SIGNALS_H_
#define QUERN_SERVICES_COMMON_SIGNALS_H_

namespace quern {

// Blocks SIGTERM and SIGINT in this thread and in those it starts, and ignores SIGPIPE. Call first
// in main, before any thread exists. A child process must unblock them.
void BlockShutdownSignals();

// Waits for SIGTERM or SIGINT and returns its number. From then on a second one ends the process
// at once with status 128 + its number.
int WaitForShutdownSignal();

// Waits for the next SIGTERM or SIGINT and returns its number; changes nothing for those after it.
int WaitForOneShutdownSignal();

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_SIGNALS_H_

#ifndef QUERN_SERVICES_CLI_LOCAL_REQUESTS_H_
#define QUERN_SERVICES_CLI_LOCAL_REQUESTS_H_

#include <absl/status/statusor.h>

#include <cstdint>
#include <vector>

#include "core/engine/engine.h"

namespace quern::cli {

struct LocalAnswer {
  GenerationResult result;
  std::vector<int32_t> ids;
};

// Submits all requests at once and waits for their ends. The first error there is, if any.
absl::StatusOr<std::vector<LocalAnswer>> GenerateTogether(Engine& engine, ModelHandle model,
                                                          std::vector<GenerationRequest> requests);

// Tokens per second of all answers together. Prefill ends with the last first token, decode is what
// follows it: an estimate with several answers, since the first of them decode before.
struct LocalSpeed {
  double prefill = 0;
  double decode = 0;
};
LocalSpeed SpeedOf(const std::vector<LocalAnswer>& answers);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_LOCAL_REQUESTS_H_

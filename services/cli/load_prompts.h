#ifndef QUERN_SERVICES_CLI_LOAD_PROMPTS_H_
#define QUERN_SERVICES_CLI_LOAD_PROMPTS_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "services/cli/load.h"

namespace quern::cli {

// What a load test asks, one request after another.
class LoadPrompts {
 public:
  // Prompts of token ids that every vocabulary has. No two begin alike: what is measured is to be
  // computed, not found in a prefix cache.
  static LoadPrompts Random(int prompt_tokens, int max_tokens, uint64_t seed);

  // The lines of a file, in its order, again and again: {"prompt": a text or token ids} or
  // {"messages": [{"role": "system", "user" or "assistant", "content": a text}]}, and perhaps
  // {"max_tokens": N}. INVALID_ARGUMENT with the line; errors of reading the file.
  static absl::StatusOr<LoadPrompts> FromFile(const std::string& path, int max_tokens);

  LoadRequest Next();

 private:
  LoadPrompts() = default;

  std::vector<LoadRequest> lines_;  // empty: random ones
  size_t next_ = 0;
  int prompt_tokens_ = 0;
  int max_tokens_ = 0;
  std::mt19937_64 random_;
};

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_LOAD_PROMPTS_H_

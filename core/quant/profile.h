#ifndef QUERN_CORE_QUANT_PROFILE_H_
#define QUERN_CORE_QUANT_PROFILE_H_

// Where a run's time goes, by operation of LibTorch and by our own loops. No torch type appears
// here.

#include <cstdint>
#include <string>
#include <vector>

#include "core/quant/quantize.h"

namespace quern {

struct ProfileRow {
  std::string name;       // "aten::mm", "aten::mm bfloat16", "quern::fake_quantize backward", ...
  bool bfloat16 = false;  // its products are of these, not of floats
  int64_t num_calls = 0;
  double seconds = 0;  // its own, without what it called
  double flop = 0;     // of products and attention; 0 of everything else
};

// Counts from now on, in the whole process, until StopProfile. Costs some percent of the time.
void StartProfile();
// What was counted, by seconds, the largest first.
std::vector<ProfileRow> StopProfile();

// A table of `rows` with each one's share of `wall_seconds` and its rate, then the shares of the
// products and how near they and the whole came to `peak`.
std::string FormatProfile(const std::vector<ProfileRow>& rows, double wall_seconds,
                          const ProductRates& peak);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_PROFILE_H_

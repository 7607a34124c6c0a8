#ifndef QUERN_CORE_QUANT_PROFILE_H_
#define QUERN_CORE_QUANT_PROFILE_H_

// Where a run's time goes, by operation of LibTorch and by our own loops. No torch type appears
// here.

#include <cstdint>
#include <string>
#include <vector>

namespace quern {

struct ProfileRow {
  std::string name;  // "aten::mm", "quern::fake_quantize backward", ...
  int64_t num_calls = 0;
  double seconds = 0;  // its own, without what it called
  double flop = 0;     // of products and attention; 0 of everything else
};

// Counts from now on, in the whole process, until StopProfile. Costs some percent of the time.
void StartProfile();
// What was counted, by seconds, the largest first.
std::vector<ProfileRow> StopProfile();

// A table of `rows` with each one's share of `wall_seconds` and its rate, then the share of the
// products' and how near they and the whole came to `peak_gflops`.
std::string FormatProfile(const std::vector<ProfileRow>& rows, double wall_seconds,
                          double peak_gflops);

}  // namespace quern

#endif  // QUERN_CORE_QUANT_PROFILE_H_

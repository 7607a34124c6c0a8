#include "core/quant/profile.h"

#include <absl/container/flat_hash_map.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/time/clock.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "core/base/mutex.h"
#include "core/quant/torch_headers.h"

namespace quern {
namespace {

// Rows that are printed; the others are one.
constexpr size_t kMaxRows = 16;

// One operation under way, on the stack of its thread.
struct Frame : at::ObserverContext {
  Frame* caller = nullptr;
  absl::Time start;
  absl::Duration of_callees;
  double flop = 0;
  bool bfloat16 = false;
};

thread_local Frame* innermost = nullptr;

struct Totals {
  Mutex mutex;
  absl::flat_hash_map<std::string, ProfileRow> rows ABSL_GUARDED_BY(mutex);
};

Totals& TheTotals() {
  static auto& totals = *new Totals;
  return totals;
}

at::CallbackHandle callback = at::INVALID_CALLBACK_HANDLE;

double Numel(const at::Tensor& tensor) { return static_cast<double>(tensor.numel()); }

// Two for a multiply-add.
double FlopOf(absl::string_view name, c10::ArrayRef<const c10::IValue> inputs) {
  const auto tensor = [&](size_t i) {
    return i < inputs.size() && inputs[i].isTensor() ? inputs[i].toTensor() : at::Tensor();
  };
  const size_t first = name == "aten::mm" || name == "aten::bmm" ? 0 : 1;
  if (name == "aten::mm" || name == "aten::bmm" || name == "aten::addmm" ||
      name == "aten::addmm_" || name == "aten::baddbmm") {
    const at::Tensor a = tensor(first);
    const at::Tensor b = tensor(first + 1);
    if (!a.defined() || !b.defined()) return 0;
    return 2 * Numel(a) * static_cast<double>(b.size(-1));
  }
  // Scores and their sums, half of them masked; the way back computes the scores again and has four
  // products.
  const bool forward = name == "quern::attention";
  if (forward || name == "quern::attention backward") {
    const at::Tensor q = tensor(0);
    const at::Tensor k = tensor(1);
    if (!q.defined() || !k.defined()) return 0;
    return (forward ? 2.0 : 5.0) * Numel(q) * static_cast<double>(k.size(-2));
  }
  return 0;
}

bool OfBfloat16(c10::ArrayRef<const c10::IValue> inputs) {
  return inputs[0].toTensor().scalar_type() == at::kBFloat16;
}

std::unique_ptr<at::ObserverContext> OnStart(const at::RecordFunction& function) {
  auto frame = std::make_unique<Frame>();
  frame->flop = FlopOf(function.name(), function.inputs());
  frame->bfloat16 = frame->flop > 0 && OfBfloat16(function.inputs());
  frame->caller = innermost;
  innermost = frame.get();
  frame->start = absl::Now();
  return frame;
}

void OnEnd(const at::RecordFunction& function, at::ObserverContext* context) {
  auto* frame = static_cast<Frame*>(context);
  const absl::Duration elapsed = absl::Now() - frame->start;
  innermost = frame->caller;
  if (innermost != nullptr) innermost->of_callees += elapsed;
  Totals& totals = TheTotals();
  MutexLock lock(&totals.mutex);
  ProfileRow& row = totals.rows[absl::StrCat(function.name(), frame->bfloat16 ? " bfloat16" : "")];
  row.bfloat16 = frame->bfloat16;
  ++row.num_calls;
  row.seconds += absl::ToDoubleSeconds(elapsed - frame->of_callees);
  row.flop += frame->flop;
}

}  // namespace

void StartProfile() {
  {
    Totals& totals = TheTotals();
    MutexLock lock(&totals.mutex);
    totals.rows.clear();
  }
  callback = at::addGlobalCallback(
      at::RecordFunctionCallback(&OnStart, &OnEnd)
          .needsInputs(true)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION,
                   at::RecordScope::USER_SCOPE}));
}

std::vector<ProfileRow> StopProfile() {
  at::removeCallback(callback);
  std::vector<ProfileRow> rows;
  Totals& totals = TheTotals();
  MutexLock lock(&totals.mutex);
  for (auto& [name, row] : totals.rows) {
    row.name = name;
    rows.push_back(row);
  }
  std::sort(rows.begin(), rows.end(),
            [](const ProfileRow& a, const ProfileRow& b) { return a.seconds > b.seconds; });
  return rows;
}

std::string FormatProfile(const std::vector<ProfileRow>& rows, double wall_seconds,
                          const ProductRates& peak) {
  std::string text = absl::StrFormat("%-60s %9s %9s %7s %9s\n", "operation", "calls", "seconds",
                                     "share", "GFLOP/s");
  const auto add = [&](const ProfileRow& row) {
    absl::StrAppendFormat(
        &text, "%-60s %9d %9.2f %5.1f %% %9s\n", row.name.substr(0, 60), row.num_calls, row.seconds,
        100 * row.seconds / wall_seconds,
        row.flop > 0 ? absl::StrFormat("%.1f", row.flop / row.seconds / 1e9) : "");
  };
  ProfileRow others{.name = "others"};
  ProfileRow products[2] = {{.name = "floats"}, {.name = "bfloat16", .bfloat16 = true}};
  double counted = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (i < kMaxRows) {
      add(rows[i]);
    } else {
      others.num_calls += rows[i].num_calls;
      others.seconds += rows[i].seconds;
      others.flop += rows[i].flop;
    }
    counted += rows[i].seconds;
    if (rows[i].flop > 0) {
      products[rows[i].bfloat16].seconds += rows[i].seconds;
      products[rows[i].bfloat16].flop += rows[i].flop;
    }
  }
  if (others.num_calls > 0) add(others);
  add({.name = "outside LibTorch", .seconds = std::max(0.0, wall_seconds - counted)});
  double least_seconds = 0;
  for (const ProfileRow& kind : products) {
    const double peak_gflops = kind.bfloat16 ? peak.bfloat16 : peak.float32;
    if (kind.flop == 0 || peak_gflops == 0) continue;
    const double gflops = kind.flop / kind.seconds / 1e9;
    absl::StrAppendFormat(
        &text, "products of %s: %.1f %% of %.1f s, %.0f GFLOP/s (%.0f %% of this machine's %.0f)\n",
        kind.name, 100 * kind.seconds / wall_seconds, wall_seconds, gflops,
        100 * gflops / peak_gflops, peak_gflops);
    least_seconds += kind.flop / peak_gflops / 1e9;
  }
  absl::StrAppendFormat(&text,
                        "at those rates all products would take %.1f s, %.0f %% of the time\n",
                        least_seconds, 100 * least_seconds / wall_seconds);
  return text;
}

}  // namespace quern

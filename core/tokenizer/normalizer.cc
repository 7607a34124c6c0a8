#include "core/tokenizer/normalizer.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_replace.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdint>

#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

// Code points below do not decompose.
constexpr char32_t kFirstDecomposing = 0xC0;
// The longest canonical decomposition in Unicode has 4 code points.
constexpr size_t kMaxDecomposition = 8;

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

bool IsTriviallyNfc(absl::string_view text) {
  // Code points below U+0300 are starters and their own NFC. U+0300 is 0xCC 0x80 in UTF-8, and all
  // smaller code points have smaller lead bytes.
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<uint8_t>(c) < 0xCC; });
}

// utf8proc_map would do, but it orders a run of n combining marks in n^2 steps, which a megabyte of
// them turns into minutes. Here it decomposes and composes; the order is std::stable_sort's.
absl::StatusOr<std::string> Nfc(absl::string_view text) {
  if (IsTriviallyNfc(text)) return std::string(text);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    text.remove_prefix(step.num_bytes);
    if (step.code_point < kFirstDecomposing) {
      points.push_back(static_cast<utf8proc_int32_t>(step.code_point));
      continue;
    }
    utf8proc_int32_t decomposed[kMaxDecomposition];
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), decomposed, kMaxDecomposition,
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), nullptr);
    if (count < 0 || count > static_cast<utf8proc_ssize_t>(kMaxDecomposition)) {
      return absl::InternalError(absl::StrCat("utf8proc_decompose_char: result ", count));
    }
    points.insert(points.end(), decomposed, decomposed + count);
  }
  for (auto run = points.begin(); run != points.end();) {
    if (CombiningClass(*run) == 0) {
      ++run;
      continue;
    }
    const auto end =
        std::find_if(run, points.end(), [](auto point) { return CombiningClass(point) == 0; });
    std::stable_sort(run, end,
                     [](auto a, auto b) { return CombiningClass(a) < CombiningClass(b); });
    run = end;
  }
  const utf8proc_ssize_t length =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (length < 0) return absl::InternalError(utf8proc_errmsg(length));
  std::string result;
  result.reserve(static_cast<size_t>(length));
  for (utf8proc_ssize_t i = 0; i < length; ++i) {
    utf8proc_uint8_t encoded[4];
    const utf8proc_ssize_t size = utf8proc_encode_char(points[static_cast<size_t>(i)], encoded);
    result.append(reinterpret_cast<const char*>(encoded), static_cast<size_t>(size));
  }
  return result;
}

}  // namespace

absl::StatusOr<std::string> Normalize(const std::vector<NormalizerStep>& steps,
                                      absl::string_view text) {
  std::string result(text);
  for (NormalizerStep step : steps) {
    switch (step) {
      case NormalizerStep::kNfc: {
        ASSIGN_OR_RETURN(result, Nfc(result));
        break;
      }
      case NormalizerStep::kPrependMetaspace:
        if (!result.empty()) result = absl::StrCat(kMetaspace, result);
        break;
      case NormalizerStep::kSpacesToMetaspaces:
        result = absl::StrReplaceAll(result, {{" ", kMetaspace}});
        break;
    }
  }
  return result;
}

}  // namespace quern

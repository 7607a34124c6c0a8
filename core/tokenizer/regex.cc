#include "core/tokenizer/regex.h"

#include <absl/strings/str_cat.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

namespace quern {
namespace {

// One call may try this many internal steps; a match of our patterns takes a few per character of
// the piece it finds.
constexpr uint32_t kMatchLimit = 100'000'000;
constexpr uint32_t kHeapLimitKib = 64 * 1024;

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  const int length = pcre2_get_error_message(code, buffer, sizeof(buffer));
  if (length < 0) return absl::StrCat("PCRE2 error ", code);
  return std::string(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
}

}  // namespace

struct Regex::Code {
  std::unique_ptr<pcre2_code, FreeCode> code;
  // Only read while matching, so threads share it.
  std::unique_ptr<pcre2_match_context, FreeMatchContext> context;
};

Regex::Regex(std::unique_ptr<Code> code) : code_(std::move(code)) {}
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

absl::StatusOr<Regex> Regex::Compile(absl::string_view pattern) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_unique<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 nullptr));
  if (code->code == nullptr) {
    return absl::InternalError(
        absl::StrCat("pattern, offset ", offset, ": ", ErrorText(error), ": ", pattern));
  }
  // Without JIT support in the library the interpreter does the work.
  pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE);
  code->context.reset(pcre2_match_context_create(nullptr));
  if (code->context == nullptr) return absl::ResourceExhaustedError("PCRE2: out of memory");
  pcre2_set_match_limit(code->context.get(), kMatchLimit);
  pcre2_set_heap_limit(code->context.get(), kHeapLimitKib);
  return Regex(std::move(code));
}

absl::Status Regex::Split(absl::string_view text, std::vector<absl::string_view>* pieces) const {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> match(pcre2_match_data_create(1, nullptr));
  if (match == nullptr) return absl::ResourceExhaustedError("PCRE2: out of memory");
  const PCRE2_SPTR subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  // Checking the whole subject again at each match would make the loop quadratic.
  constexpr uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
  size_t done = 0;
  while (done < text.size()) {
    int rc = pcre2_match(code_->code.get(), subject, text.size(), done, kOptions, match.get(),
                         code_->context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code_->code.get(), subject, text.size(), done, kOptions | PCRE2_NO_JIT,
                       match.get(), code_->context.get());
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("splitting text of ", text.size(), " bytes: ", ErrorText(rc)));
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
    if (ends[0] > done) pieces->push_back(text.substr(done, ends[0] - done));
    pieces->push_back(text.substr(ends[0], ends[1] - ends[0]));
    done = ends[1];
  }
  if (done < text.size()) pieces->push_back(text.substr(done));
  return absl::OkStatus();
}

}  // namespace quern

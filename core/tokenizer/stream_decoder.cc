#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <utility>

#include "core/base/utf8.h"
#include "core/tokenizer/tokenizer.h"

namespace quern {
namespace {

constexpr absl::string_view kReplacement = "\uFFFD";

}  // namespace

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool continues_text)
    : tokenizer_(std::move(tokenizer)),
      strip_space_(!continues_text && tokenizer_->strips_leading_space()) {}

std::string StreamDecoder::Append(int32_t id) {
  if (tokenizer_->IsSpecial(id)) return "";
  absl::string_view bytes = tokenizer_->TokenBytes(id);
  if (strip_space_ && !bytes.empty()) {
    strip_space_ = false;
    absl::ConsumePrefix(&bytes, " ");
  }
  absl::StrAppend(&pending_, bytes);
  std::string text;
  absl::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    absl::StrAppend(&text, step.kind == Utf8Step::Kind::kCharacter ? rest.substr(0, step.num_bytes)
                                                                   : kReplacement);
    rest.remove_prefix(step.num_bytes);
  }
  pending_ = std::string(rest);
  return text;
}

std::string StreamDecoder::Finish() {
  // What is pending is always the beginning of one character.
  std::string text(pending_.empty() ? "" : kReplacement);
  pending_.clear();
  return text;
}

}  // namespace quern

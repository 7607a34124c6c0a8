#include "core/engine/text_stream.h"

#include <absl/strings/match.h>

#include <algorithm>
#include <utility>

namespace quern {

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, bool continues_text,
                       std::vector<std::string> stop_sequences)
    : stop_sequences_(std::move(stop_sequences)) {
  if (tokenizer != nullptr) decoder_.emplace(std::move(tokenizer), continues_text);
}

std::string TextStream::Append(int32_t id) {
  if (!decoder_.has_value() || matched_.has_value()) return "";
  return Push(decoder_->Append(id));
}

std::string TextStream::Finish() {
  if (!decoder_.has_value() || matched_.has_value()) return "";
  std::string text = Push(decoder_->Finish());
  if (!matched_.has_value()) text += std::exchange(held_, "");
  return text;
}

std::string TextStream::Push(absl::string_view text) {
  held_.append(text.data(), text.size());
  size_t match_end = std::string::npos;
  for (const std::string& stop : stop_sequences_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < match_end || (end == match_end && stop.size() > matched_->size())) {
      match_end = end;
      matched_ = stop;
    }
  }
  if (matched_.has_value()) {
    held_.resize(match_end - matched_->size());
    return std::exchange(held_, "");
  }

  size_t keep = 0;
  for (const std::string& stop : stop_sequences_) {
    size_t length = std::min(stop.size() - 1, held_.size());
    while (length > keep && !absl::EndsWith(held_, absl::string_view(stop).substr(0, length))) {
      --length;
    }
    keep = std::max(keep, length);
  }
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return certain;
}

}  // namespace quern

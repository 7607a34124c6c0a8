#include "core/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "core/base/utf8.h"

namespace quern {
namespace {

// The character that ends right before `end` in `text` (UTF-8).
Utf8Step LastCharacter(absl::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return NextUtf8(text.substr(begin, end - begin));
}

// \w: letters, marks, decimal digits and connectors.
bool IsWordCharacter(char32_t code_point) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool StandsAlone(absl::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !IsWordCharacter(LastCharacter(text, begin).code_point)) &&
         (end == text.size() || !IsWordCharacter(NextUtf8(text.substr(end)).code_point));
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), token_at_(1, -1) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint32_t node = 0;
    for (char c : tokens_[i].content) {
      const auto [child, added] = children_.try_emplace(
          uint64_t{node} << 8 | static_cast<uint8_t>(c), static_cast<uint32_t>(token_at_.size()));
      if (added) token_at_.push_back(-1);
      node = child->second;
    }
    token_at_[node] = static_cast<int32_t>(i);
    begins_[static_cast<uint8_t>(tokens_[i].content.front())] = true;
  }
}

const AddedToken* AddedTokens::Match(absl::string_view text) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (char c : text) {
    const auto child = children_.find(uint64_t{node} << 8 | static_cast<uint8_t>(c));
    if (child == children_.end()) break;
    node = child->second;
    if (token_at_[node] >= 0) longest = &tokens_[static_cast<size_t>(token_at_[node])];
  }
  return longest;
}

std::vector<AddedTokens::Part> AddedTokens::Split(absl::string_view text, bool find_special) const {
  std::vector<Part> parts;
  size_t done = 0;  // where the ordinary text before the next token begins
  size_t at = 0;
  while (at < text.size()) {
    const AddedToken* token =
        begins_[static_cast<uint8_t>(text[at])] ? Match(text.substr(at)) : nullptr;
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    if ((token->special && !find_special) ||
        (token->single_word && !StandsAlone(text, begin, end))) {
      continue;
    }
    while (token->lstrip && begin > done) {
      const Utf8Step before = LastCharacter(text, begin);
      if (!IsUnicodeSpace(before.code_point)) break;
      begin -= before.num_bytes;
    }
    while (token->rstrip && end < text.size()) {
      const Utf8Step behind = NextUtf8(text.substr(end));
      if (!IsUnicodeSpace(behind.code_point)) break;
      end += behind.num_bytes;
    }
    at = end;
    if (begin > done) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({text.substr(begin, end - begin), token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
  return parts;
}

}  // namespace quern

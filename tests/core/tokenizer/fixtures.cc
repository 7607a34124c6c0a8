#include "tests/core/tokenizer/fixtures.h"

#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include "core/tokenizer/vocabulary.h"

namespace quern {

std::string ReadSourceFile(const std::string& path) {
  const char* root = std::getenv("QUERN_SOURCE_DIR");
  std::ifstream file(absl::StrCat(root == nullptr ? "." : root, "/", path), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

Json AddedTokenJson(int id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content}, {"special", special}, {"single_word", false},
          {"lstrip", false}, {"rstrip", false},    {"normalized", false}};
}

Json ByteLevelJson(const std::vector<std::vector<std::string>>& merges,
                   const std::vector<std::string>& special) {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[ByteLevelCharacter(static_cast<uint8_t>(byte))] = byte;
  }
  Json merge_list = Json::array();
  for (const auto& merge : merges) {
    vocab[merge[0] + merge[1]] = vocab.size();
    merge_list.push_back(merge);
  }
  Json added = Json::array();
  for (const std::string& token : special) {
    added.push_back(AddedTokenJson(static_cast<int>(vocab.size() + added.size()), token));
  }
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  return {{"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merge_list}}}};
}

Json PiecesJson(const std::vector<std::vector<std::string>>& merges) {
  Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  for (int byte = 0; byte < 256; ++byte) vocab[absl::StrFormat("<0x%02X>", byte)] = 3 + byte;
  for (const char* piece : {"\u2581", "a", "b", "c", "d", "e"}) vocab[piece] = vocab.size();
  Json merge_list = Json::array();
  for (const auto& merge : merges) {
    vocab[merge[0] + merge[1]] = vocab.size();
    merge_list.push_back(merge);
  }
  Json added = Json::array(
      {AddedTokenJson(0, "<unk>"), AddedTokenJson(1, "<s>"), AddedTokenJson(2, "</s>")});
  return Json::parse(R"({
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "\u2581"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}})")
      .patch({{{"op", "add"}, {"path", "/added_tokens"}, {"value", added}},
              {{"op", "add"},
               {"path", "/model"},
               {"value",
                {{"type", "BPE"},
                 {"unk_token", "<unk>"},
                 {"fuse_unk", true},
                 {"byte_fallback", true},
                 {"vocab", vocab},
                 {"merges", merge_list}}}}});
}

std::shared_ptr<const Tokenizer> MakeTokenizer(const Json& json) {
  auto tokenizer = Tokenizer::FromJson(json.dump());
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << std::endl;
    std::abort();
  }
  return *std::move(tokenizer);
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, const std::string& text,
                         const Tokenizer::EncodeOptions& options) {
  auto ids = tokenizer.Encode(text, options);
  if (!ids.ok()) {
    std::cerr << ids.status() << std::endl;
    std::abort();
  }
  return *std::move(ids);
}

}  // namespace quern

#include "core/engine/text_stream.h"

#include <random>

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

// Id i gives piece i.
class PieceTokenizer final : public Tokenizer {
 public:
  explicit PieceTokenizer(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {}
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view,
                                              const EncodeOptions&) const override {
    return absl::UnimplementedError("not needed");
  }
  std::string Decode(absl::Span<const int32_t> ids, bool) const override {
    std::string text;
    for (const int32_t id : ids) text += pieces_[id];
    return text;
  }
  absl::string_view TokenBytes(int32_t id) const override { return pieces_[id]; }
  bool strips_leading_space() const override { return false; }
  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }
  int32_t TokenToId(absl::string_view) const override { return -1; }
  bool IsSpecial(int32_t) const override { return false; }
  bool TakesSpaceBehind(int32_t) const override { return false; }
  int32_t bos_id() const override { return -1; }

 private:
  const std::vector<std::string> pieces_;
};

// The text after each piece, and last what Finish gives.
std::vector<std::string> Feed(TextStream& stream, size_t num_pieces) {
  std::vector<std::string> texts;
  for (size_t id = 0; id < num_pieces; ++id) {
    texts.push_back(stream.Append(static_cast<int32_t>(id)));
  }
  texts.push_back(stream.Finish());
  return texts;
}

std::vector<std::string> Cut(const std::vector<std::string>& pieces,
                             const std::vector<std::string>& stops,
                             std::string* matched = nullptr) {
  TextStream stream(std::make_shared<PieceTokenizer>(pieces), /*continues_text=*/true, stops);
  std::vector<std::string> texts = Feed(stream, pieces.size());
  if (matched != nullptr) *matched = stream.matched().value_or("");
  return texts;
}

using testing::ElementsAre;

TEST(TextStreamTest, WithoutStopSequencesTextComesAtOnce) {
  EXPECT_THAT(Cut({"a", "b", "c"}, {}), ElementsAre("a", "b", "c", ""));
}

TEST(TextStreamTest, HoldsBackWhatMayBecomeAStopSequence) {
  EXPECT_THAT(Cut({"a\n", "x", "\n", "\nU"}, {"\n\nUser"}),
              ElementsAre("a", "\nx", "", "", "\n\nU"));
}

TEST(TextStreamTest, FindsAStopSequenceAcrossTokens) {
  std::string matched;
  EXPECT_THAT(Cut({"hello S", "TO", "P more"}, {"STOP"}, &matched),
              ElementsAre("hello ", "", "", ""));
  EXPECT_EQ(matched, "STOP");
}

TEST(TextStreamTest, TextInATokenBeforeTheMatchIsGiven) {
  EXPECT_THAT(Cut({"one. Two. Three"}, {". T"}), ElementsAre("one", ""));
}

TEST(TextStreamTest, AfterAMatchThereIsNoText) {
  EXPECT_THAT(Cut({"x|y", "z", "w"}, {"|"}), ElementsAre("x", "", "", ""));
}

TEST(TextStreamTest, AFailedPartialMatchMayContainTheStartOfAnother) {
  EXPECT_THAT(Cut({"aa", "ab"}, {"aab"}), ElementsAre("", "a", ""));
}

TEST(TextStreamTest, TheMatchThatIsCompleteFirstWins) {
  std::string matched;
  // "cd" is complete while "abcdef" still grows.
  EXPECT_THAT(Cut({"xabcdefg"}, {"abcdef", "cd"}, &matched), ElementsAre("xab", ""));
  EXPECT_EQ(matched, "cd");
  // Of two that are complete together, the longer.
  Cut({"xabcd"}, {"cd", "abcd"}, &matched);
  EXPECT_EQ(matched, "abcd");
}

TEST(TextStreamTest, CharactersAreNeverCut) {
  EXPECT_THAT(Cut({"\xf0\x9f", "\x98\x80", "!"}, {}), ElementsAre("", "\xf0\x9f\x98\x80", "!", ""));
  // A stop sequence of which the stream holds half a character.
  std::string matched;
  EXPECT_THAT(Cut({"a\xc3", "\xa9z"}, {"\xc3\xa9"}, &matched), ElementsAre("a", "", ""));
  EXPECT_EQ(matched, "\xc3\xa9");
}

TEST(TextStreamTest, WithoutATokenizerThereIsNoText) {
  TextStream stream(nullptr, /*continues_text=*/false, {});
  EXPECT_EQ(stream.Append(1), "");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(TextStreamTest, HowTheTextIsCutMakesNoDifference) {
  std::mt19937 random(4);
  const auto number = [&](int below) { return static_cast<int>(random() % below); };
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += static_cast<char>('a' + number(3));
    std::vector<std::string> stops(number(3) + 1);
    for (std::string& stop : stops) {
      for (int i = 0; i <= number(5); ++i) stop += static_cast<char>('a' + number(3));
    }
    std::vector<std::string> pieces;
    for (size_t begin = 0; begin < text.size();) {
      const size_t length = 1 + number(6);
      pieces.push_back(text.substr(begin, length));
      begin += length;
    }
    // By definition: the first prefix of the text that ends in a stop sequence.
    std::string wanted = text;
    std::string wanted_match;
    for (size_t end = 1; end <= text.size() && wanted_match.empty(); ++end) {
      for (const std::string& stop : stops) {
        if (end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0 &&
            stop.size() > wanted_match.size()) {
          wanted_match = stop;
          wanted = text.substr(0, end - stop.size());
        }
      }
    }
    std::string matched;
    std::string got;
    for (const std::string& piece : Cut(pieces, stops, &matched)) got += piece;
    ASSERT_EQ(got, wanted) << text;
    ASSERT_EQ(matched, wanted_match) << text;
  }
}

}  // namespace
}  // namespace quern

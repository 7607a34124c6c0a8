#include "services/cli/format.h"

#include <gtest/gtest.h>

namespace quern::cli {
namespace {

TEST(FormatTest, Bytes) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.0 kB");
  EXPECT_EQ(FormatBytes(98'400'000), "98.4 MB");
  EXPECT_EQ(FormatBytes(999'960'000), "1.0 GB");
  EXPECT_EQ(FormatBytes(5'000'000'000'000'000), "5000.0 TB");
}

TEST(FormatTest, Count) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatCount(-12345), "-12,345");
  EXPECT_EQ(FormatCount(-123), "-123");
}

TEST(FormatTest, Elapsed) {
  EXPECT_EQ(FormatElapsed(absl::Seconds(7)), "0:07");
  EXPECT_EQ(FormatElapsed(absl::Seconds(59.6)), "1:00");
  EXPECT_EQ(FormatElapsed(absl::Seconds(754)), "12:34");
  EXPECT_EQ(FormatElapsed(absl::Seconds(11045)), "3:04:05");
  EXPECT_EQ(FormatElapsed(-absl::Seconds(5)), "0:00");
}

TEST(FormatTest, BarIsAsWideAsAsked) {
  EXPECT_EQ(FormatBar(0, 4), "░░░░");
  EXPECT_EQ(FormatBar(0.5, 4), "██░░");
  EXPECT_EQ(FormatBar(1, 4), "████");
  EXPECT_EQ(FormatBar(7, 4), "████");
  EXPECT_EQ(FormatBar(-1, 4), "░░░░");
}

TEST(FormatTest, TruncatesByCharacters) {
  EXPECT_EQ(TruncateToWidth("██░░ abc", 6), "██░░ a");
  EXPECT_EQ(TruncateToWidth("abc", 3), "abc");
  EXPECT_EQ(TruncateToWidth("abc", 9), "abc");
  EXPECT_EQ(TruncateToWidth("abc", 0), "");
}

TEST(FormatTest, WrapsBetweenWords) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(WrapWords("a bc  def g", 4), (Lines{"a bc", "def", "g"}));
  EXPECT_EQ(WrapWords("ééé éé é", 6), (Lines{"ééé éé", "é"}));
  EXPECT_EQ(WrapWords("longer than", 3), (Lines{"longer", "than"}));
  EXPECT_EQ(WrapWords("as it is", 0), (Lines{"as it is"}));
  EXPECT_EQ(WrapWords("", 4), (Lines{""}));
}

TEST(FormatTest, TableAlignsColumns) {
  EXPECT_EQ(FormatTable({{"NAME", "SIZE"}, {"é", "5"}, {"longer", "1234"}}, {false, true}),
            "NAME    SIZE\n"
            "é          5\n"
            "longer  1234\n");
  EXPECT_EQ(FormatTable({{"A", "B"}, {"x"}}, {false, false}), "A  B\nx\n");
}

}  // namespace
}  // namespace quern::cli

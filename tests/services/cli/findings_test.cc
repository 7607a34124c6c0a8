#include "services/cli/findings.h"

#include <gmock/gmock.h>

namespace quern::cli {
namespace {

using testing::HasSubstr;

Findings Some() {
  Findings findings;
  findings.StartSection("machine");
  findings.Ok("kernels", "the avx2 table");
  findings.Warn("memory", "1.0 GB", "2.0 GB for the services", "use a machine with more memory");
  findings.StartSection("services");
  findings.Problem("quern-jobs", "nobody answers", "an answer", "start it");
  findings.Skip("prometheus", "not asked", "name it with --prometheus");
  return findings;
}

TEST(FindingsTest, TextWithoutColours) {
  EXPECT_EQ(Some().ToText(0, false),
            "machine\n"
            "  ✓ kernels            the avx2 table\n"
            "  ! memory             1.0 GB\n"
            "                       wanted  2.0 GB for the services\n"
            "                       do      use a machine with more memory\n"
            "\n"
            "services\n"
            "  ✗ quern-jobs         nobody answers\n"
            "                       wanted  an answer\n"
            "                       do      start it\n"
            "  - prometheus         not asked\n"
            "                       do      name it with --prometheus\n"
            "\n"
            "1 problem, 1 warning, 1 ok, 1 not checked\n");
}

TEST(FindingsTest, LongNameHasItsLine) {
  Findings findings;
  findings.StartSection("checkpoints");
  findings.Ok("a-directory-with-a-long-name", "llama");
  EXPECT_THAT(findings.ToText(80, false), HasSubstr("  ✓ a-directory-with-a-long-name\n"
                                                    "                       llama\n"));
}

TEST(FindingsTest, WhatTheTerminalWouldObeyIsLeftOut) {
  Findings findings;
  findings.StartSection("s");
  findings.Ok("a\x1b[2J", "two\nlines");
  EXPECT_EQ(findings.all()[0].check, "a [2J");
  EXPECT_EQ(findings.all()[0].found, "two lines");
}

TEST(FindingsTest, NarrowScreensWrapBetweenWords) {
  const std::string text = Some().ToText(56, false);
  EXPECT_THAT(text, HasSubstr("do      use a machine with more\n"
                              "                               memory\n"));
}

TEST(FindingsTest, ColoursAreReset) {
  const std::string text = Some().ToText(80, true);
  EXPECT_THAT(text, HasSubstr("\x1b[31m✗\x1b[0m"));
  EXPECT_THAT(text, HasSubstr("\x1b[31m1 problem"));
}

TEST(FindingsTest, Json) {
  Findings findings = Some();
  Findings more;
  more.StartSection("more");
  more.Ok("a", "b");
  findings.Append(more);
  const Json json = findings.ToJson();
  EXPECT_EQ(json.at("version"), QUERN_VERSION);
  EXPECT_EQ(json.at("summary"), (Json{{"ok", 2}, {"skipped", 1}, {"warning", 1}, {"problem", 1}}));
  EXPECT_EQ(json.at("findings").at(1).at("level"), "warning");
  EXPECT_EQ(json.at("findings").at(4).at("section"), "more");
}

}  // namespace
}  // namespace quern::cli

#ifndef QUERN_SERVICES_CLI_FORMAT_H_
#define QUERN_SERVICES_CLI_FORMAT_H_

// How the CLI writes quantities and tables.

#include <absl/strings/string_view.h>
#include <absl/time/time.h>

#include <cstdint>
#include <string>
#include <vector>

namespace quern::cli {

// "98.4 MB", with decimal units.
std::string FormatBytes(int64_t bytes);

// "1,234,567".
std::string FormatCount(int64_t count);

// "w4 g64", "w2.25 g64 symmetric"; bits: in the mean.
std::string FormatQuantization(double bits, int group_size, bool symmetric);

// "0:07", "12:34" or "3:04:05".
std::string FormatElapsed(absl::Duration duration);

// "2026-05-31 14:03:22" in local time; "-" for a time that is not set.
std::string FormatLocalTime(absl::Time time);

// A bar of `width` cells for `fraction` in [0, 1].
std::string FormatBar(double fraction, int width);

// Cells that UTF-8 `text` takes on the screen: bytes that do not continue a character.
int Cells(absl::string_view text);

// `text` in lines of at most `width` cells, broken between words; a longer word gets a line of its
// own. One line when `width` is 0.
std::vector<std::string> WrapWords(absl::string_view text, int width);

// The start of UTF-8 `text` that takes at most `cells` cells.
std::string TruncateToWidth(absl::string_view text, int cells);

// Rows of cells in aligned columns, two spaces apart; the first row is the header. Columns named in
// `right` are aligned to the right.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows,
                        const std::vector<bool>& right);

// A share with its standard error, in per cent: "68.30 ± 6.10".
std::string FormatShare(double share, double error);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_FORMAT_H_

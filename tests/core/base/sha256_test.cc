#include "core/base/sha256.h"

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

// FIPS 180-4 example values.
TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256Test, PiecesGiveTheSameAsTheWhole) {
  Sha256 sha;
  sha.Update("a");
  sha.Update("");
  sha.Update("bc");
  EXPECT_EQ(sha.FinishHex(), Sha256Hex("abc"));
}

TEST(DigestTest, TakesSixtyFourLowerCaseHexDigitsOnly) {
  const std::string good(64, 'a');
  ASSERT_OK_AND_ASSIGN(Digest digest, Digest::Parse(good));
  EXPECT_EQ(digest.hex(), good);
  for (const std::string& bad :
       {std::string(), std::string(63, 'a'), std::string(65, 'a'), std::string(64, 'A'),
        std::string(64, 'g'), "../" + std::string(61, 'a'), "sha256:" + std::string(57, 'a')}) {
    EXPECT_THAT(Digest::Parse(bad),
                StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("64")))
        << bad;
  }
}

}  // namespace
}  // namespace quern

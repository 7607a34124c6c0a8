#include "core/store/local_artifact_store.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/scratch_directory.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::_;
using testing::HasSubstr;

class LocalArtifactStoreTest : public testing::Test {
 protected:
  LocalArtifactStoreTest() { Open(); }

  void Open(int64_t reserve_bytes = 0) {
    auto store =
        LocalArtifactStore::Open({.directory = directory_.path(), .reserve_bytes = reserve_bytes});
    ASSERT_OK(store);
    store_ = *std::move(store);
  }

  absl::Status Put(const Digest& digest, const std::string& announced, const std::string& bytes) {
    auto writer = store_->StartBlob(digest, static_cast<int64_t>(announced.size()));
    if (!writer.ok()) return writer.status();
    const absl::Status status = (*writer)->Append(bytes);
    return status.ok() ? (*writer)->Commit() : status;
  }
  absl::Status Put(const std::string& bytes) { return Put(DigestOf(bytes), bytes, bytes); }
  static Digest DigestOf(const std::string& bytes) {
    return Digest::Parse(Sha256Hex(bytes)).value();
  }
  int NumFiles() {
    int count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_ / "blobs")) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }

  ScratchDirectory directory_;
  std::unique_ptr<LocalArtifactStore> store_;
};

TEST_F(LocalArtifactStoreTest, BlobsLieUnderTheirDigest) {
  const std::string bytes = "hello";
  EXPECT_FALSE(store_->HasBlob(DigestOf(bytes)));
  ASSERT_OK(Put(bytes));
  EXPECT_TRUE(store_->HasBlob(DigestOf(bytes)));
  ASSERT_OK_AND_ASSIGN(const std::string path, store_->BlobPath(DigestOf(bytes)));
  const std::string hex = Sha256Hex(bytes);
  EXPECT_EQ(path, directory_ / ("blobs/sha256/" + hex.substr(0, 2) + "/" + hex));
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_EQ(text.str(), bytes);
  EXPECT_EQ(NumFiles(), 1);
}

TEST_F(LocalArtifactStoreTest, PiecesAndEmptyBlobsAndRepeatsWork) {
  const std::string bytes(300'000, 'q');
  ASSERT_OK_AND_ASSIGN(auto writer, store_->StartBlob(DigestOf(bytes), 300'000));
  for (int i = 0; i < 3; ++i) ASSERT_OK(writer->Append(bytes.substr(0, 100'000)));
  ASSERT_OK(writer->Commit());
  EXPECT_OK(Put(bytes));
  EXPECT_OK(Put(""));
  ASSERT_OK_AND_ASSIGN(const ArtifactStore::Usage usage, store_->GetUsage());
  EXPECT_EQ(usage.blobs, 2);
  EXPECT_EQ(usage.bytes, 300'000);
  EXPECT_EQ(store_->ListBlobs().value().size(), 2);
}

TEST_F(LocalArtifactStoreTest, UsageFollowsBlobsAndRestarts) {
  const auto usage = [&] { return store_->GetUsage().value(); };
  EXPECT_OK(Put("hello"));
  EXPECT_OK(Put("world!"));
  EXPECT_FALSE(Put(DigestOf("a"), "a", "b").ok());
  EXPECT_EQ(usage().blobs, 2);
  EXPECT_EQ(usage().bytes, 11);
  EXPECT_OK(store_->DeleteBlob(DigestOf("hello")));
  EXPECT_OK(store_->DeleteBlob(DigestOf("hello")));
  EXPECT_EQ(usage().blobs, 1);
  EXPECT_EQ(usage().bytes, 6);
  Open();
  EXPECT_EQ(usage().blobs, 1);
  EXPECT_EQ(usage().bytes, 6);
}

TEST_F(LocalArtifactStoreTest, WrongBytesLeaveNothing) {
  const Digest digest = DigestOf("hello");
  EXPECT_THAT(Put(digest, "hello", "hellO"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("SHA-256")));
  EXPECT_THAT(Put(digest, "hello", "hell"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("4 bytes, announced were 5")));
  EXPECT_THAT(Put(digest, "hello", "hello!"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("more bytes than the 5")));
  EXPECT_THAT(store_->StartBlob(digest, -1), StatusIs(StatusCode::kInvalidArgument, _));
  EXPECT_FALSE(store_->HasBlob(digest));
  EXPECT_THAT(store_->BlobPath(digest), StatusIs(StatusCode::kNotFound, HasSubstr(digest.hex())));
  EXPECT_EQ(NumFiles(), 0);
}

TEST_F(LocalArtifactStoreTest, AnUnfinishedUploadIsInvisibleAndGoes) {
  const Digest digest = DigestOf("hello");
  {
    ASSERT_OK_AND_ASSIGN(auto writer, store_->StartBlob(digest, 5));
    ASSERT_OK(writer->Append("hel"));
    EXPECT_FALSE(store_->HasBlob(digest));
    EXPECT_EQ(store_->ListBlobs().value().size(), 0);
    EXPECT_EQ(NumFiles(), 1);
  }
  EXPECT_EQ(NumFiles(), 0);
}

TEST_F(LocalArtifactStoreTest, LeftoversOfACrashGoAtStart) {
  ASSERT_OK(Put("hello"));
  const std::string hex = Sha256Hex("hello");
  std::ofstream(directory_ / ("blobs/sha256/" + hex.substr(0, 2) + "/.upload-0123")) << "x";
  EXPECT_EQ(NumFiles(), 2);
  Open();
  EXPECT_EQ(NumFiles(), 1);
  EXPECT_TRUE(store_->HasBlob(DigestOf("hello")));
}

TEST_F(LocalArtifactStoreTest, TheReserveStaysFree) {
  Open(/*reserve_bytes=*/int64_t{1} << 60);
  EXPECT_THAT(Put("hello"), StatusIs(StatusCode::kResourceExhausted, HasSubstr("reserve")));
  Open();
  EXPECT_THAT(store_->StartBlob(DigestOf("x"), int64_t{1} << 60),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("free")));
}

TEST_F(LocalArtifactStoreTest, DeleteIsIdempotent) {
  ASSERT_OK(Put("hello"));
  EXPECT_OK(store_->DeleteBlob(DigestOf("hello")));
  EXPECT_OK(store_->DeleteBlob(DigestOf("hello")));
  EXPECT_FALSE(store_->HasBlob(DigestOf("hello")));
}

}  // namespace
}  // namespace quern

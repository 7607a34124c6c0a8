#include "core/artifact/scale_delta.h"
#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::_;
using testing::HasSubstr;

class ArtifactServiceTest : public JobsServerTest {
 protected:
  absl::StatusOr<artifact::v1::Artifact> GetArtifact(const std::string& name) {
    Context context;
    artifact::v1::GetArtifactRequest request;
    request.set_name(name);
    artifact::v1::Artifact artifact;
    const grpc::Status status = artifacts_->GetArtifact(&context, request, &artifact);
    if (!status.ok()) return FromGrpcStatus(status);
    return artifact;
  }
  absl::Status Delete(const std::string& name) {
    Context context;
    artifact::v1::DeleteArtifactRequest request;
    request.set_name(name);
    google::protobuf::Empty response;
    return FromGrpcStatus(artifacts_->DeleteArtifact(&context, request, &response));
  }
  absl::StatusOr<std::string> Read(const std::string& name, const std::string& path,
                                   int64_t offset = 0) {
    Context context;
    artifact::v1::ReadArtifactFileRequest request;
    request.set_name(name);
    request.set_path(path);
    request.set_offset_bytes(offset);
    auto reader = artifacts_->ReadArtifactFile(&context, request);
    std::string bytes;
    artifact::v1::ReadArtifactFileResponse response;
    while (reader->Read(&response)) {
      EXPECT_LE(response.chunk().size(), 1u << 20);
      bytes += response.chunk();
    }
    const grpc::Status status = reader->Finish();
    if (!status.ok()) return FromGrpcStatus(status);
    return bytes;
  }
  int NumBlobs() {
    int count = 0;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(config_.data_directory + "/blobs")) {
      count += entry.is_regular_file() ? 1 : 0;
    }
    return count;
  }
};

TEST_F(ArtifactServiceTest, PublishedArtifactSaysWhatItIs) {
  const std::string name = PublishArtifact("a");
  ASSERT_OK_AND_ASSIGN(const artifact::v1::Artifact artifact, GetArtifact(name));
  EXPECT_EQ(artifact.name(), name);
  EXPECT_EQ(artifact.format().bits(), 4);
  EXPECT_EQ(artifact.mean_bits(), 4);
  EXPECT_EQ(artifact.matrix_bits_size(), 0);
  EXPECT_EQ(artifact.format().group_size(), 32);
  EXPECT_THAT(artifact.lineage().job(), HasSubstr("quantizationJobs/"));
  EXPECT_EQ(artifact.lineage().checkpoint_digest(), std::string(64, 'a'));
  int64_t total = 0;
  for (const auto& file : artifact.files()) {
    const std::string bytes = ReadAll(directory_ / ("a/" + file.path()));
    EXPECT_EQ(file.sha256(), Sha256Hex(bytes));
    EXPECT_EQ(file.size_bytes(), static_cast<int64_t>(bytes.size()));
    total += file.size_bytes();
  }
  EXPECT_EQ(artifact.size_bytes(), total);
  EXPECT_TRUE(artifact.has_create_time());
}

TEST_F(ArtifactServiceTest, FilesComeBackAsTheyWereAndLoad) {
  const std::string name = PublishArtifact("a");
  ASSERT_OK_AND_ASSIGN(const artifact::v1::Artifact artifact, GetArtifact(name));
  std::filesystem::create_directory(directory_ / "copy");
  for (const auto& file : artifact.files()) {
    ASSERT_OK_AND_ASSIGN(const std::string bytes, Read(name, file.path()));
    WriteAll(directory_ / ("copy/" + file.path()), bytes);
    EXPECT_EQ(Read(name, file.path(), 5).value(), bytes.substr(5));
    EXPECT_EQ(Read(name, file.path(), file.size_bytes()).value(), "");
  }
  EXPECT_OK(LoadArtifact(directory_ / "copy", name.substr(name.find('/') + 1)));
}

TEST_F(ArtifactServiceTest, StagedButUnpublishedFilesAreInvisible) {
  CreateName();
  const worker::v1::Lease lease = Lease();
  ASSERT_OK_AND_ASSIGN(const std::string name, Stage(lease.token(), MakeArtifact("a")));
  EXPECT_THAT(GetArtifact(name), StatusIs(StatusCode::kNotFound, _));
  EXPECT_THAT(Read(name, "manifest.json"), StatusIs(StatusCode::kNotFound, _));
  Start();
  EXPECT_EQ(NumBlobs(), 0);
}

TEST_F(ArtifactServiceTest, ListsPages) {
  const std::string first = PublishArtifact("a", 2);
  const std::string second = PublishArtifact("b", 3);
  artifact::v1::ListArtifactsRequest request;
  request.set_page_size(1);
  artifact::v1::ListArtifactsResponse page;
  Context context;
  ASSERT_TRUE(artifacts_->ListArtifacts(&context, request, &page).ok());
  ASSERT_EQ(page.artifacts_size(), 1);
  EXPECT_EQ(page.artifacts(0).name(), second);
  request.set_page_token(page.next_page_token());
  Context next;
  ASSERT_TRUE(artifacts_->ListArtifacts(&next, request, &page).ok());
  EXPECT_EQ(page.artifacts(0).name(), first);
}

TEST_F(ArtifactServiceTest, ADeltaKeepsItsBase) {
  const std::string base_name = PublishArtifact("base");
  const LoadedArtifact base = LoadArtifact(directory_ / "base").value();
  PackedModel tuned = base.model;
  tuned.vectors.at("model.norm.weight")[0] += 1;
  ASSERT_OK(WriteScaleDelta(base, tuned, TinyLineage(), directory_ / "delta"));
  CreateName();
  const worker::v1::Lease lease = Lease();
  ASSERT_OK_AND_ASSIGN(const std::string delta, Stage(lease.token(), directory_ / "delta"));
  ASSERT_OK(Succeed(lease.token(), delta));
  ASSERT_OK_AND_ASSIGN(const artifact::v1::Artifact artifact, GetArtifact(delta));
  EXPECT_EQ(artifact.lineage().base(), base_name);
  EXPECT_THAT(Delete(base_name), StatusIs(StatusCode::kFailedPrecondition, HasSubstr(delta)));
  Start();
  EXPECT_OK(Read(base_name, "model.safetensors"));
  ASSERT_OK(Delete(delta));
  ASSERT_OK(Delete(base_name));
  EXPECT_EQ(NumBlobs(), 0);
}

TEST_F(ArtifactServiceTest, ADeltaWithoutItsBaseIsNotPublished) {
  const LoadedArtifact base = LoadArtifact(MakeArtifact("base")).value();
  PackedModel tuned = base.model;
  tuned.vectors.at("model.norm.weight")[0] += 1;
  ASSERT_OK(WriteScaleDelta(base, tuned, TinyLineage(), directory_ / "delta"));
  CreateName();
  const worker::v1::Lease lease = Lease();
  ASSERT_OK_AND_ASSIGN(const std::string delta, Stage(lease.token(), directory_ / "delta"));
  EXPECT_THAT(Succeed(lease.token(), delta),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("is not published")));
  EXPECT_THAT(GetArtifact(delta), StatusIs(StatusCode::kNotFound, _));
}

TEST_F(ArtifactServiceTest, DeleteKeepsWhatOthersShare) {
  // The tokenizer and the chat template are the same blobs in both.
  const std::string first = PublishArtifact("a", 2);
  const int blobs_of_one = NumBlobs();
  const std::string second = PublishArtifact("b", 3);
  const int blobs_of_both = NumBlobs();
  EXPECT_LT(blobs_of_both, 2 * blobs_of_one);
  ASSERT_OK(Delete(first));
  EXPECT_THAT(GetArtifact(first), StatusIs(StatusCode::kNotFound, _));
  EXPECT_EQ(NumBlobs(), blobs_of_one);
  ASSERT_OK_AND_ASSIGN(const artifact::v1::Artifact artifact, GetArtifact(second));
  for (const auto& file : artifact.files()) EXPECT_OK(Read(second, file.path()));
  ASSERT_OK(Delete(second));
  EXPECT_EQ(NumBlobs(), 0);
  EXPECT_THAT(Delete(second), StatusIs(StatusCode::kNotFound, _));
}

TEST_F(ArtifactServiceTest, ABlobThatWasCutShortIsReported) {
  const std::string name = PublishArtifact("a");
  ASSERT_OK_AND_ASSIGN(const artifact::v1::Artifact artifact, GetArtifact(name));
  const std::string& hex = artifact.files(0).sha256();
  const std::string path = config_.data_directory + "/blobs/sha256/" + hex.substr(0, 2) + "/" + hex;
  std::filesystem::resize_file(path, 1);
  EXPECT_THAT(Read(name, artifact.files(0).path()), StatusIs(StatusCode::kDataLoss, _));
}

TEST_F(ArtifactServiceTest, ReadersMayLeave) {
  const std::string name = PublishArtifact("a");
  for (int i = 0; i < 10; ++i) {
    Context context;
    artifact::v1::ReadArtifactFileRequest request;
    request.set_name(name);
    request.set_path("model.safetensors");
    auto reader = artifacts_->ReadArtifactFile(&context, request);
    context.TryCancel();
    artifact::v1::ReadArtifactFileResponse response;
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_OK(GetArtifact(name));
}

}  // namespace
}  // namespace quern

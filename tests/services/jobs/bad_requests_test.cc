// Every field of every request, wrong: the code, the field's name in the message, and a service
// that goes on.

#include <limits>

#include "tests/services/jobs/jobs_fixture.h"

namespace quern {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class BadRequestsTest : public JobsServerTest {
 protected:
  using CreateFn = std::function<void(quantization::v1::CreateQuantizationJobRequest&,
                                      quantization::v1::QuantizeTask&)>;

  void ExpectCreateRefused(const std::string& part, const CreateFn& change,
                           StatusCode code = StatusCode::kInvalidArgument) {
    auto request = CreateRequest();
    change(request, *request.mutable_quantization_job()->mutable_quantize());
    EXPECT_THAT(Create(request), StatusIs(code, HasSubstr(part)));
    request.set_validate_only(true);
    EXPECT_THAT(Create(request), StatusIs(code, HasSubstr(part))) << "validate_only";
  }
  void TearDown() override {
    // Still serving, and nothing was made.
    ASSERT_OK(Create(CreateRequest()));
  }
};

TEST_F(BadRequestsTest, CreateEnvelope) {
  ExpectCreateRefused("quantization_job: is required",
                      [](auto& request, auto&) { request.clear_quantization_job(); });
  ExpectCreateRefused("a task is required", [](auto& request, auto&) {
    request.mutable_quantization_job()->clear_quantize();
  });
  for (const std::string& id : {std::string("a b"), std::string("x\n"), std::string(65, 'a'),
                                std::string("../../etc"), std::string("\xc3\xa4")}) {
    ExpectCreateRefused("request_id", [&](auto& request, auto&) { request.set_request_id(id); });
  }
}

TEST_F(BadRequestsTest, CreateTune) {
  WriteAll(directory_ / "data/chat.jsonl", R"({"prompt":"a","response":"b"})");
  const auto refused = [this](const std::string& part, const auto& change) {
    ExpectCreateRefused(part, [&](auto& request, auto&) {
      auto& task = *request.mutable_quantization_job()->mutable_tune();
      task.set_base("artifacts/" + std::string(64, 'a'));
      task.mutable_data()->set_path("chat.jsonl");
      change(task);
    });
  };
  refused("quantization_job.tune.base: is required", [](auto& task) { task.clear_base(); });
  refused("data.path: is required", [](auto& task) { task.clear_data(); });
  for (const std::string& base :
       {std::string("artifacts/"), std::string(64, 'a'), "artifacts/" + std::string(63, 'a'),
        "artifacts/../" + std::string(61, 'a')}) {
    refused("wanted artifacts/ and 64 hex digits", [&](auto& task) { task.set_base(base); });
  }
  // Well formed, but there is none.
  refused("quantization_job.tune.base: ", [](auto&) {});
  for (const char* path : {"/etc/passwd", "../chat.jsonl", "chat.txt", "chat\n.jsonl"}) {
    refused("data", [&](auto& task) { task.mutable_data()->set_path(path); });
  }
  refused("settings.trainable is", [](auto& task) {
    task.mutable_settings()->set_trainable(quantization::v1::E2eQpSettings::ALL);
  });
  refused("settings.sample_count",
          [](auto& task) { task.mutable_settings()->set_sample_count(0); });
  refused("settings.batch_size", [](auto& task) { task.mutable_settings()->set_batch_size(1025); });
  refused("settings.learning_rate", [](auto& task) {
    task.mutable_settings()->set_learning_rate(std::numeric_limits<double>::quiet_NaN());
  });
  refused("settings.held_out_count",
          [](auto& task) { task.mutable_settings()->set_held_out_count(-1); });
}

TEST_F(BadRequestsTest, CreateEvaluate) {
  WriteAll(directory_ / "data/items.jsonl", R"({"context":"a","continuation":"b"})");
  const auto refused = [this](const std::string& part, const auto& change) {
    ExpectCreateRefused(part, [&](auto& request, auto&) {
      auto& task = *request.mutable_quantization_job()->mutable_evaluate();
      task.set_artifact("artifacts/" + std::string(64, 'a'));
      task.add_texts()->set_path("text.txt");
      change(task);
    });
  };
  refused("quantization_job.evaluate.artifact: is required",
          [](auto& task) { task.clear_artifact(); });
  refused("wanted artifacts/ and 64 hex digits", [](auto& task) { task.set_artifact("x"); });
  refused("quantization_job.evaluate.artifact: ", [](auto&) {});  // there is none
  refused("wanted one to measure on", [](auto& task) { task.clear_texts(); });
  refused("texts[1].path", [](auto& task) { task.add_texts()->set_path("../text.txt"); });
  refused("texts[1]", [](auto& task) { task.add_texts()->set_path("text.exe"); });
  refused("chunk_tokens is 1", [](auto& task) { task.mutable_texts(0)->set_chunk_tokens(1); });
  refused("zero_shot[0].path", [](auto& task) { task.add_zero_shot()->set_path("text.txt"); });
  refused("zero_shot[0].max_item_count", [](auto& task) {
    task.add_zero_shot()->set_path("items.jsonl");
    task.mutable_zero_shot(0)->set_max_item_count(-1);
  });
  refused("at most 16", [](auto& task) {
    for (int i = 0; i < 16; ++i) task.add_texts()->set_path("text.txt");
  });
  refused("reference.path", [](auto& task) { task.mutable_reference()->set_path("/etc"); });
}

TEST_F(BadRequestsTest, CreateLabels) {
  const auto with_label = [this](const std::string& key, const std::string& value) {
    ExpectCreateRefused("quantization_job.labels", [&](auto& request, auto&) {
      (*request.mutable_quantization_job()->mutable_labels())[key] = value;
    });
  };
  with_label("", "v");
  with_label("Upper", "v");
  with_label("9digit", "v");
  with_label(std::string(64, 'a'), "v");
  with_label("k", std::string(256, 'v'));
  with_label("k", "line\nbreak");
  with_label("k", std::string("nul\0", 4));
  ExpectCreateRefused("17 labels", [](auto& request, auto&) {
    for (int i = 0; i < 17; ++i) {
      (*request.mutable_quantization_job()->mutable_labels())[absl::StrCat("k", i)] = "v";
    }
  });
}

TEST_F(BadRequestsTest, CreateCheckpoint) {
  std::filesystem::create_directory_symlink("/etc", directory_ / "models/link");
  std::filesystem::create_directory(directory_ / "models/empty");
  std::filesystem::create_directory(directory_ / "models/damaged");
  WriteAll(directory_ / "models/damaged/config.json", "{");
  WriteAll(directory_ / "models/short.gguf", "GGUF");
  for (const std::string& path :
       {std::string(), std::string("none"), std::string("/etc"), std::string("../models/tiny"),
        std::string("tiny/../tiny"), std::string("link"), std::string("link/passwd"),
        std::string("a\nb"), std::string(2000, 'a'), std::string("empty")}) {
    ExpectCreateRefused("checkpoint",
                        [&](auto&, auto& task) { task.mutable_checkpoint()->set_path(path); });
  }
  for (const char* path : {"damaged", "short.gguf"}) {
    auto request = CreateRequest();
    request.mutable_quantization_job()->mutable_quantize()->mutable_checkpoint()->set_path(path);
    const absl::Status status = Create(request).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("checkpoint.path"));
  }
  ExpectCreateRefused("digest",
                      [](auto&, auto& task) { task.mutable_checkpoint()->set_digest("xyz"); });
}

TEST_F(BadRequestsTest, CreateTexts) {
  std::filesystem::create_directory(directory_ / "data/folder.txt");
  std::filesystem::create_symlink("/etc/passwd", directory_ / "data/link.txt");
  WriteAll(directory_ / "data/text.bin", "x");
  for (const char* path :
       {"none.txt", "/etc/passwd", "../data/text.txt", "folder.txt", "link.txt", "text.bin"}) {
    ExpectCreateRefused("calibration",
                        [&](auto&, auto& task) { task.mutable_calibration()->set_path(path); });
    ExpectCreateRefused("evaluation",
                        [&](auto&, auto& task) { task.mutable_evaluation()->set_path(path); });
  }
  ExpectCreateRefused("valuation", [](auto&, auto& task) {
    task.mutable_evaluation()->set_path("text.txt");
    task.mutable_evaluation()->set_chunk_tokens(-1);
  });
}

TEST_F(BadRequestsTest, CreateFormatAndSettings) {
  ExpectCreateRefused("format: is required", [](auto&, auto& task) { task.clear_format(); });
  for (int bits : {-1, 1, 5, 16, 1 << 30}) {
    ExpectCreateRefused("bits", [&](auto&, auto& task) { task.mutable_format()->set_bits(bits); });
  }
  for (int group : {-64, 1, 48, 1 << 30}) {
    ExpectCreateRefused("group",
                        [&](auto&, auto& task) { task.mutable_format()->set_group_size(group); });
  }
  ExpectCreateRefused("mbedding",
                      [](auto&, auto& task) { task.mutable_format()->set_embedding_bits(3); });
  ExpectCreateRefused("method", [](auto&, auto& task) {
    task.set_method(static_cast<quantization::v1::QuantizeTask::Method>(77));
  });
  ExpectCreateRefused("preset", [](auto&, auto& task) {
    task.set_preset(static_cast<quantization::v1::QuantizeTask::Preset>(77));
  });
  const auto block_ap = [this](const std::function<void(quantization::v1::BlockApSettings&)>& set) {
    ExpectCreateRefused("quantize", [&](auto&, auto& task) {
      task.set_method(quantization::v1::QuantizeTask::BLOCK_AP);
      set(*task.mutable_block_ap());
    });
  };
  block_ap([](auto& settings) { settings.set_sample_count(0); });
  block_ap([](auto& settings) { settings.set_sample_count(-1); });
  block_ap([](auto& settings) { settings.set_sequence_length_tokens(1 << 30); });
  block_ap([](auto& settings) { settings.set_sequence_length_tokens(1024); });  // over the context
  block_ap([](auto& settings) { settings.set_epoch_count(-1); });
  block_ap([](auto& settings) { settings.set_batch_size(0); });
  block_ap([](auto& settings) { settings.set_weight_learning_rate(-1); });
  block_ap([](auto& settings) {
    settings.set_quant_learning_rate(std::numeric_limits<double>::quiet_NaN());
  });
  block_ap([](auto& settings) {
    settings.set_zero_point_learning_rate(std::numeric_limits<double>::infinity());
  });
  block_ap([](auto& settings) { settings.set_validation_sample_count(-1); });
  const auto e2e_qp = [this](const std::function<void(quantization::v1::E2eQpSettings&)>& set) {
    ExpectCreateRefused("quantize", [&](auto&, auto& task) {
      task.set_method(quantization::v1::QuantizeTask::BLOCK_AP_E2E_QP);
      task.mutable_block_ap()->set_sequence_length_tokens(64);
      task.mutable_e2e_qp()->set_sequence_length_tokens(64);
      set(*task.mutable_e2e_qp());
    });
  };
  e2e_qp([](auto& settings) { settings.set_sample_count(0); });
  e2e_qp([](auto& settings) { settings.set_learning_rate(1e9); });
  e2e_qp([](auto& settings) { settings.set_cross_entropy_share(1.5); });
  e2e_qp([](auto& settings) {
    settings.set_loss(static_cast<quantization::v1::E2eQpSettings::Loss>(77));
  });
}

TEST_F(BadRequestsTest, Names) {
  for (const std::string& name :
       {std::string(), std::string("x"), std::string("quantizationJobs/"),
        std::string("quantizationJobs/a/b"), std::string("quantizationJobs/.. "),
        std::string("artifacts/abc"), "quantizationJobs/" + std::string(100, 'a')}) {
    EXPECT_THAT(Get(name), StatusIs(StatusCode::kInvalidArgument, HasSubstr("name"))) << name;
    EXPECT_THAT(Cancel(name), StatusIs(StatusCode::kInvalidArgument, HasSubstr("name"))) << name;
  }
  EXPECT_THAT(Get("quantizationJobs/none"), StatusIs(StatusCode::kNotFound, HasSubstr("none")));
  for (const std::string& name :
       {std::string(), std::string("x"), std::string("artifacts/"), std::string("artifacts/xyz"),
        "artifacts/" + std::string(64, 'A'), "artifacts/../" + std::string(61, 'a')}) {
    Context context;
    artifact::v1::GetArtifactRequest request;
    request.set_name(name);
    artifact::v1::Artifact response;
    EXPECT_THAT(FromGrpcStatus(artifacts_->GetArtifact(&context, request, &response)),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("name")));
  }
}

TEST_F(BadRequestsTest, Lists) {
  const auto list = [this](int page_size, const std::string& token, int state) {
    Context context;
    quantization::v1::ListQuantizationJobsRequest request;
    request.set_page_size(page_size);
    request.set_page_token(token);
    if (state != 0) request.add_states(static_cast<QuantizationJob::State>(state));
    quantization::v1::ListQuantizationJobsResponse response;
    return FromGrpcStatus(jobs_->ListQuantizationJobs(&context, request, &response));
  };
  EXPECT_THAT(list(-1, "", 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_size")));
  EXPECT_THAT(list(0, "x", 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_token")));
  EXPECT_THAT(list(0, std::string(1000, 'x'), 0),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_token")));
  EXPECT_THAT(list(0, "", 77), StatusIs(StatusCode::kInvalidArgument, HasSubstr("states")));
  EXPECT_OK(list(1 << 30, "", 0));
  Context context;
  artifact::v1::ListArtifactsRequest request;
  request.set_page_size(-5);
  artifact::v1::ListArtifactsResponse response;
  EXPECT_THAT(FromGrpcStatus(artifacts_->ListArtifacts(&context, request, &response)),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("page_size")));
}

TEST_F(BadRequestsTest, Leases) {
  const auto refused = [this](const std::string& field,
                              const std::function<void(worker::v1::LeaseJobRequest&)>& change) {
    auto request = LeaseRequest();
    change(request);
    EXPECT_THAT(LeaseJob(request), StatusIs(StatusCode::kInvalidArgument, HasSubstr(field)));
  };
  refused("worker", [](auto& request) { request.clear_worker(); });
  refused("worker", [](auto& request) { request.set_worker("a\"b"); });
  refused("worker", [](auto& request) { request.set_worker(std::string(64, 'a')); });
  refused("request_id", [](auto& request) { request.clear_request_id(); });
  refused("wait_duration", [](auto& request) { request.mutable_wait_duration()->set_seconds(-1); });
  refused("wait_duration",
          [](auto& request) { request.mutable_wait_duration()->set_nanos(1'000'000'000); });
  refused("capabilities.device_name", [](auto& request) {
    request.mutable_capabilities()->set_device_name(std::string(257, 'x'));
  });
  refused("capabilities.device", [](auto& request) {
    request.mutable_capabilities()->set_device(
        static_cast<worker::v1::WorkerCapabilities::Device>(9));
  });
  for (const double gflops : {-1.0, 1e10, std::numeric_limits<double>::quiet_NaN()}) {
    refused("capabilities.gflops",
            [=](auto& request) { request.mutable_capabilities()->set_gflops(gflops); });
    refused("capabilities.bfloat16_gflops",
            [=](auto& request) { request.mutable_capabilities()->set_bfloat16_gflops(gflops); });
  }
  refused("capabilities.memory_bytes",
          [](auto& request) { request.mutable_capabilities()->set_memory_bytes(-1); });
}

TEST_F(BadRequestsTest, RenewalsAndReleases) {
  CreateName();
  const std::string token = Lease().token();
  const auto refused = [&](const std::string& field,
                           const std::function<void(worker::v1::RenewLeaseRequest&)>& change) {
    worker::v1::RenewLeaseRequest request;
    request.set_token(token);
    change(request);
    EXPECT_THAT(Renew(request), StatusIs(StatusCode::kInvalidArgument, HasSubstr(field)));
  };
  refused("token", [](auto& request) { request.clear_token(); });
  refused("token", [](auto& request) { request.set_token(std::string(300, 'x')); });
  refused("progress.stage", [](auto& request) { request.mutable_progress(); });
  const auto progress = [](worker::v1::RenewLeaseRequest & request) -> auto& {
    request.mutable_progress()->set_stage(quantization::v1::Progress::PACKING);
    return *request.mutable_progress();
  };
  refused("progress.completed_count",
          [&](auto& request) { progress(request).set_completed_count(-1); });
  refused("progress.completed_count",
          [&](auto& request) { progress(request).set_completed_count(2); });
  refused("progress.loss", [&](auto& request) {
    progress(request).set_loss(std::numeric_limits<double>::quiet_NaN());
  });
  refused("progress.remaining",
          [&](auto& request) { progress(request).mutable_remaining()->set_seconds(-1); });
  refused("log_lines", [](auto& request) { request.add_log_lines(std::string(70'000, 'x')); });
  refused("log_lines", [](auto& request) { request.add_log_lines("\x1b[31mred"); });
  refused("log_lines", [](auto& request) {
    for (int i = 0; i < 1025; ++i) request.add_log_lines("x");
  });
  EXPECT_THAT(Release(""), StatusIs(StatusCode::kInvalidArgument, HasSubstr("token")));
  EXPECT_THAT(Release("made-up"), StatusIs(StatusCode::kAborted, HasSubstr("lease")));
  // None of it did harm.
  EXPECT_OK(RenewWithProgress(token, 1));
  EXPECT_OK(Release(token));
}

TEST_F(BadRequestsTest, Completions) {
  CreateName();
  const std::string token = Lease().token();
  const auto refused = [&](const std::string& field,
                           const std::function<void(worker::v1::CompleteJobRequest&)>& change) {
    worker::v1::CompleteJobRequest request = ErrorRequest(token, 13, "DIVERGED");
    change(request);
    EXPECT_THAT(Complete(request), StatusIs(StatusCode::kInvalidArgument, HasSubstr(field)));
  };
  refused("token", [](auto& request) { request.clear_token(); });
  refused("outcome", [](auto& request) { request.clear_outcome(); });
  refused("result.artifact", [](auto& request) { request.mutable_result(); });
  refused("result.artifact",
          [](auto& request) { request.mutable_result()->set_artifact("artifacts/../x"); });
  refused("result.evaluation.rows", [](auto& request) {
    request.mutable_result()->set_artifact("artifacts/" + std::string(64, 'a'));
    for (int i = 0; i < 65; ++i) request.mutable_result()->mutable_evaluation()->add_rows();
  });
  refused("result.evaluation.rows.model", [](auto& request) {
    request.mutable_result()->set_artifact("artifacts/" + std::string(64, 'a'));
    request.mutable_result()->mutable_evaluation()->add_rows()->set_model("a\nb");
  });
  refused("error.code", [](auto& request) { request.mutable_error()->set_code(0); });
  refused("error.code", [](auto& request) { request.mutable_error()->set_code(17); });
  refused("error.reason", [](auto& request) { request.mutable_error()->set_reason("lower"); });
  refused("error.reason", [](auto& request) { request.mutable_error()->clear_reason(); });
  refused("error.message",
          [](auto& request) { request.mutable_error()->set_message(std::string(17 << 10, 'x')); });
  // An artifact that nobody staged.
  EXPECT_THAT(Succeed(token, "artifacts/" + std::string(64, 'a')),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("not staged")));
  EXPECT_OK(Release(token));
}

TEST_F(BadRequestsTest, Stagings) {
  CreateName();
  const std::string token = Lease().token();
  const std::string path = MakeArtifact("a");
  using Messages = std::vector<worker::v1::StageArtifactRequest>;
  const auto refused = [&](const std::string& part, const std::function<void(Messages&)>& change,
                           StatusCode code = StatusCode::kInvalidArgument) {
    Messages messages = StageMessages(token, path);
    change(messages);
    EXPECT_THAT(Stage(messages), StatusIs(code, HasSubstr(part)));
  };
  const auto file = [](Messages & messages, int i = 0) -> auto& {
    return *messages[0].mutable_header()->mutable_files(i);
  };
  refused("header: is required", [](Messages& m) { m.clear(); });
  refused("payload", [](Messages& m) { m[0].clear_payload(); });
  refused("came before the header", [](Messages& m) { m.erase(m.begin()); });
  refused("came twice", [](Messages& m) { m.insert(m.begin(), m[0]); });
  refused("header.token", [](Messages& m) { m[0].mutable_header()->clear_token(); });
  refused(
      "lease", [](Messages& m) { m[0].mutable_header()->set_token("x"); }, StatusCode::kAborted);
  refused("header.files", [](Messages& m) { m[0].mutable_header()->clear_files(); });
  refused("header.files", [&](Messages& m) {
    for (int i = 0; i < 65; ++i) *m[0].mutable_header()->add_files() = file(m);
  });
  for (const std::string& bad :
       {std::string(), std::string("/etc/passwd"), std::string("../x"), std::string("a/../b"),
        std::string("a//b"), std::string("a\\b"), std::string("a\nb"), std::string(300, 'a')}) {
    refused("header.files[0].path", [&](Messages& m) { file(m).set_path(bad); });
  }
  refused("came twice", [&](Messages& m) { file(m, 1).set_path(file(m, 0).path()); });
  refused("size_bytes", [&](Messages& m) { file(m).set_size_bytes(-1); });
  refused("size_bytes", [&](Messages& m) { file(m).set_size_bytes(int64_t{1} << 50); });
  refused("sha256", [&](Messages& m) { file(m).set_sha256("abc"); });
  refused("SHA-256", [&](Messages& m) { file(m).set_sha256(std::string(64, '0')); });
  refused("more bytes", [](Messages& m) { m.emplace_back().set_chunk("extra"); });
  refused("ended before the last byte", [](Messages& m) { m.pop_back(); });
  refused("at most 1048576", [](Messages& m) { m[1].set_chunk(std::string((1 << 20) + 1, 'x')); });
  // Every file is what it says, but together they are no artifact.
  Messages lone(2);
  lone[0].mutable_header()->set_token(token);
  auto& other = *lone[0].mutable_header()->add_files();
  other.set_path("other.txt");
  other.set_size_bytes(1);
  other.set_sha256(Sha256Hex("x"));
  lone[1].set_chunk("x");
  EXPECT_THAT(Stage(lone), StatusIs(StatusCode::kInvalidArgument, HasSubstr("manifest.json")));
  other.set_path("manifest.json");
  EXPECT_THAT(Stage(lone), StatusIs(StatusCode::kInvalidArgument, HasSubstr("manifest")));
  std::filesystem::remove(path + "/tokenizer.json");
  EXPECT_THAT(Stage(token, path), StatusIs(StatusCode::kInvalidArgument, HasSubstr("manifest")));
  EXPECT_OK(Release(token));
}

TEST_F(BadRequestsTest, Reads) {
  const std::string name = PublishArtifact("a");
  const auto read = [this](const std::string& artifact, const std::string& path, int64_t offset) {
    Context context;
    artifact::v1::ReadArtifactFileRequest request;
    request.set_name(artifact);
    request.set_path(path);
    request.set_offset_bytes(offset);
    auto reader = artifacts_->ReadArtifactFile(&context, request);
    artifact::v1::ReadArtifactFileResponse response;
    while (reader->Read(&response)) {
    }
    return FromGrpcStatus(reader->Finish());
  };
  EXPECT_THAT(read("x", "manifest.json", 0),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("name")));
  EXPECT_THAT(read("artifacts/" + std::string(64, 'a'), "manifest.json", 0),
              StatusIs(StatusCode::kNotFound, HasSubstr("artifact")));
  EXPECT_THAT(read(name, "none", 0), StatusIs(StatusCode::kNotFound, HasSubstr("path")));
  EXPECT_THAT(read(name, "", 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("path")));
  for (const char* path : {"../jobs.sqlite", "../../../../etc/passwd", "/etc/passwd"}) {
    EXPECT_THAT(read(name, path, 0), StatusIs(StatusCode::kInvalidArgument, HasSubstr("path")));
  }
  EXPECT_THAT(read(name, "manifest.json", -1),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("offset_bytes")));
  EXPECT_THAT(read(name, "manifest.json", 1 << 30),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("offset_bytes")));
}

}  // namespace
}  // namespace quern

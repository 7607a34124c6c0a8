#include <signal.h>

#include <filesystem>
#include <fstream>

#include "core/artifact/artifact.h"
#include "core/base/file.h"
#include "core/checkpoint/checkpoint.h"
#include "tests/core/artifact/fixture.h"
#include "tests/services/cli/cli_fixture.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using quantization::v1::EvaluationReport;
using quantization::v1::JobEvent;
using quantization::v1::Progress;
using quantization::v1::QuantizeTask;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using Job = quantization::v1::QuantizationJob;

const std::string kDigest(64, 'a');

class CommandsTest : public CliTest {
 protected:
  CommandsTest() {
    Job& job = services_.job;
    job.set_name("quantizationJobs/j1");
    job.set_state(Job::RUNNING);
    job.mutable_quantize()->mutable_checkpoint()->set_path("tiny");
    job.mutable_quantize()->mutable_format()->set_bits(4);
    job.mutable_quantize()->mutable_format()->set_group_size(64);
    job.mutable_plan()->set_artifact_size_bytes(60'000'000);
    services_.artifact.set_name("artifacts/" + kDigest);
    services_.artifact.set_size_bytes(1234);
    services_.model.set_name("models/m");
    services_.model.set_artifact("artifacts/" + kDigest);
    services_.model.set_state(inference::v1::Model::ACTIVE);
    services_.model.set_chat_format("chatml");
  }

  static JobEvent StateEvent(int64_t sequence, const Job& job) {
    JobEvent event;
    event.set_sequence(sequence);
    *event.mutable_job() = job;
    return event;
  }
  // A job that runs through its blocks and succeeds.
  void ScriptSuccess() {
    Job job = services_.job;
    services_.events = {StateEvent(1, job)};
    for (int block = 1; block <= 30; ++block) {
      JobEvent event;
      event.set_sequence(1 + block);
      Progress& progress = *event.mutable_progress();
      progress.set_stage(Progress::BLOCK_AP);
      progress.set_completed_count(block);
      progress.set_total_count(30);
      progress.set_loss(0.0123);
      progress.mutable_remaining()->set_seconds(130);
      services_.events.push_back(event);
    }
    job.set_state(Job::SUCCEEDED);
    job.set_artifact("artifacts/" + kDigest);
    EvaluationReport& report = *job.mutable_evaluation();
    for (const char* model : {"source", "rtn", "result"}) {
      EvaluationReport::Row& row = *report.add_rows();
      row.set_model(model);
      row.set_dataset("sampled");
      row.set_perplexity(17.25);
      row.set_kl_divergence(0.125);
      row.set_top1_agreement(0.875);
      row.set_token_count(20480);
    }
    report.set_source_size_bytes(98'400'000);
    report.set_artifact_size_bytes(60'000'000);
    services_.events.push_back(StateEvent(99, job));
  }
  static inference::v1::GenerateTextResponse Piece(const std::string& text, int32_t id) {
    inference::v1::GenerateTextResponse piece;
    piece.set_text(text);
    piece.add_token_ids(id);
    return piece;
  }
  void ScriptAnswer() {
    services_.pieces = {Piece("The capital", 1), Piece(" is Paris.", 2)};
    auto& last = services_.pieces.back();
    last.set_finish_reason(inference::v1::GenerateTextResponse::END_OF_TEXT);
    last.set_seed(7);
    last.set_system_fingerprint("0123456789ab-avx2");
    last.mutable_usage()->set_prompt_tokens(5);
    last.mutable_usage()->set_output_tokens(11);
    last.mutable_usage()->mutable_time_to_first_token()->set_seconds(1);
    last.mutable_usage()->mutable_total_duration()->set_seconds(2);
  }
};

TEST_F(CommandsTest, QuantizeSendsTheWholeTask) {
  ScriptSuccess();
  const Result result = RunConnected(
      {"quantize", "dir/model", "--bits=3", "--group-size=128", "--symmetric", "--method=block_ap",
       "--preset=quick", "--calibration=c.txt", "--eval-text=e.txt", "--eval-chunks=9", "--seed=5",
       "--label=team=a", "--loss=cross_entropy", "--e2e-samples=12", "--start=gptq",
       "--target=both_streams", "--target-bits=3.5", "--sampled=7", "--compute-dtype=bfloat16"});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  const auto& request = services_.created_job;
  EXPECT_THAT(request.request_id(), testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-"
                                                          "[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
  EXPECT_FALSE(request.validate_only());
  const QuantizeTask& task = request.quantization_job().quantize();
  EXPECT_EQ(task.checkpoint().path(), "dir/model");
  EXPECT_EQ(task.format().bits(), 3);
  EXPECT_EQ(task.format().group_size(), 128);
  EXPECT_TRUE(task.format().symmetric());
  EXPECT_EQ(task.format().embedding_bits(), 8);
  EXPECT_EQ(task.method(), QuantizeTask::BLOCK_AP);
  EXPECT_EQ(task.preset(), QuantizeTask::QUICK);
  EXPECT_EQ(task.calibration().path(), "c.txt");
  EXPECT_EQ(task.calibration().sampled_count(), 7);
  EXPECT_EQ(task.target_bits(), 3.5);
  EXPECT_EQ(task.compute_dtype(), QuantizeTask::BFLOAT16);
  EXPECT_EQ(task.evaluation().path(), "e.txt");
  EXPECT_EQ(task.evaluation().max_chunk_count(), 9);
  EXPECT_EQ(task.seed(), 5);
  EXPECT_EQ(task.e2e_qp().sample_count(), 12);
  EXPECT_EQ(task.block_ap().start(), quantization::v1::BlockApSettings::GPTQ);
  EXPECT_EQ(task.block_ap().target(), quantization::v1::BlockApSettings::BOTH_STREAMS);
  EXPECT_EQ(request.quantization_job().labels().at("team"), "a");
}

TEST_F(CommandsTest, QuantizeTakesSettingsFromAFile) {
  ScriptSuccess();
  const std::string path = testing::TempDir() + "/settings.json";
  std::ofstream(path) << R"({"blockAp":{"weightLearningRate":0.001},"activationDtype":"BFLOAT16",)"
                      << R"("e2eQp":{"sampleCount":5}})";
  const Result result = RunConnected(
      {"quantize", "tiny", "--bits=3", "--start=gptq", "--e2e-samples=12", "--settings=" + path});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  const QuantizeTask& task = services_.created_job.quantization_job().quantize();
  EXPECT_EQ(task.format().bits(), 3);
  EXPECT_EQ(task.block_ap().start(), quantization::v1::BlockApSettings::GPTQ);
  EXPECT_EQ(task.block_ap().weight_learning_rate(), 0.001);
  EXPECT_EQ(task.e2e_qp().sample_count(), 5) << "the file counts";
  EXPECT_EQ(task.activation_dtype(), QuantizeTask::BFLOAT16);
  std::ofstream(path) << R"({"blockAp":{"weightRate":1}})";
  const Result wrong = RunConnected({"quantize", "tiny", "--settings=" + path});
  EXPECT_NE(wrong.exit_code, 0);
  EXPECT_THAT(wrong.error, AllOf(HasSubstr(path), HasSubstr("weightRate")));
  EXPECT_THAT(RunConnected({"quantize", "tiny", "--settings=" + path + ".gone"}).error,
              HasSubstr("settings.json.gone"));
}

TEST_F(CommandsTest, QuantizeShowsProgressAndTheEvaluation) {
  ScriptSuccess();
  const Result result = RunConnected({"quantize", "tiny"});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_THAT(result.output, HasSubstr("BLOCK_AP  block 30 of 30  loss 0.0123  2:10 left"));
  EXPECT_THAT(result.output, HasSubstr("round to nearest"));
  EXPECT_THAT(result.output, HasSubstr("87.5 %"));
  EXPECT_THAT(result.output, HasSubstr("98.4 MB before, 60.0 MB after"));
  EXPECT_THAT(result.output, HasSubstr("artifacts/" + kDigest));
  // No terminal: no colours, no bars, not a line for each event.
  EXPECT_THAT(result.output, Not(HasSubstr("\x1b")));
  EXPECT_THAT(result.output, Not(HasSubstr("█")));
  EXPECT_THAT(result.output, Not(HasSubstr("block 2 of 30")));
  EXPECT_THAT(result.output, Not(HasSubstr("needs more training")));
}

TEST_F(CommandsTest, TwoBitsOfASmallModelGetANote) {
  ScriptSuccess();
  EXPECT_THAT(RunConnected({"quantize", "tiny", "--bits=2"}).output,
              HasSubstr("needs more training at 2 bits"));
  services_.job.mutable_plan()->set_artifact_size_bytes(900'000'000);
  EXPECT_THAT(RunConnected({"quantize", "tiny", "--bits=2"}).output,
              Not(HasSubstr("needs more training")));
}

TEST_F(CommandsTest, QuantizeDetachedAndValidated) {
  const Result detached = RunConnected({"quantize", "tiny", "--detach"});
  EXPECT_EQ(detached.exit_code, 0);
  EXPECT_THAT(detached.output, HasSubstr("quantizationJobs/j1"));
  EXPECT_EQ(RunJson({"quantize", "tiny", "--detach"}).at("name"), "quantizationJobs/j1");

  auto* stage = services_.job.mutable_plan()->add_stages();
  stage->set_stage(Progress::BLOCK_AP);
  stage->mutable_duration()->set_seconds(90);
  stage->set_host_memory_bytes(2'000'000'000);
  const Result plan = RunConnected({"quantize", "tiny", "--validate-only"});
  EXPECT_EQ(plan.exit_code, 0);
  EXPECT_TRUE(services_.created_job.validate_only());
  EXPECT_THAT(plan.output, HasSubstr("BLOCK_AP  1:30  2.0 GB"));
}

TEST_F(CommandsTest, FailedJobIsAFailure) {
  services_.job.set_state(Job::FAILED);
  services_.job.mutable_error()->set_code(13);
  services_.job.mutable_error()->set_reason("DIVERGED");
  services_.job.mutable_error()->set_message("loss is not finite in block 3");
  services_.events = {StateEvent(1, services_.job)};
  const Result result = RunConnected({"quantize", "tiny"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error,
              HasSubstr("quern: INTERNAL: quantizationJobs/j1 failed: DIVERGED: loss is not"));
}

TEST_F(CommandsTest, InterruptDetachesFromTheJob) {
  services_.events = {StateEvent(1, services_.job)};
  services_.watch_stays_open = true;
  const auto process = Start(Connected({"quantize", "tiny"}));
  ASSERT_TRUE(Eventually([&] { return services_.open.load(); }));
  ASSERT_OK(process->Signal(SIGINT));
  const Result result = Finish(*process);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("quern jobs watch quantizationJobs/j1"));
  EXPECT_THAT(result.error, HasSubstr("quern jobs cancel quantizationJobs/j1"));
  EXPECT_EQ(services_.num_cancelled_jobs, 0);
}

TEST_F(CommandsTest, JobsAsJson) {
  EXPECT_EQ(RunJson({"jobs", "list"}).at("quantizationJobs").at(0).at("state"), "RUNNING");
  EXPECT_EQ(RunJson({"jobs", "get", "j1"}).at("name"), "quantizationJobs/j1");
  EXPECT_EQ(RunJson({"jobs", "get", "quantizationJobs/j1"}).at("state"), "RUNNING");
  EXPECT_EQ(RunJson({"jobs", "cancel", "j1"}).at("state"), "CANCELLING");
  EXPECT_EQ(RunJson({"jobs", "delete", "j1"}), Json::object());
  EXPECT_EQ(services_.num_cancelled_jobs, 1);
  EXPECT_EQ(services_.num_deleted, 1);

  ScriptSuccess();
  std::vector<std::string> arguments = {"jobs", "watch", "j1", "--json"};
  const Result watched = RunConnected(arguments);
  EXPECT_EQ(watched.exit_code, 0);
  std::vector<Json> events;
  size_t begin = 0;
  for (size_t end = 0; (end = watched.output.find('\n', begin)) != std::string::npos;
       begin = end + 1) {
    ASSERT_OK_AND_ASSIGN(Json event, ParseJson(watched.output.substr(begin, end - begin), "line"));
    events.push_back(std::move(event));
  }
  ASSERT_EQ(events.size(), services_.events.size());
  EXPECT_EQ(events[1].at("progress").at("stage"), "BLOCK_AP");
  EXPECT_EQ(events.back().at("job").at("state"), "SUCCEEDED");
}

TEST_F(CommandsTest, JobsAsTables) {
  const Result list = RunConnected({"jobs", "list"});
  EXPECT_THAT(list.output, HasSubstr("JOB  STATE"));
  EXPECT_THAT(list.output, HasSubstr("j1   RUNNING  tiny w4g64"));
  EXPECT_THAT(RunConnected({"jobs", "get", "j1"}).output, HasSubstr("state     RUNNING"));
  const Result wrong = RunConnected({"jobs", "list", "--state=SLEEPING"});
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.error, HasSubstr("SLEEPING"));
}

TEST_F(CommandsTest, ArtifactsAreFoundByTheStartOfTheirId) {
  EXPECT_EQ(RunJson({"artifacts", "list"}).at("artifacts").at(0).at("name"),
            "artifacts/" + kDigest);
  EXPECT_EQ(RunJson({"artifacts", "get", "aaaa"}).at("sizeBytes"), "1234");
  EXPECT_EQ(RunConnected({"artifacts", "get", "bbbb"}).exit_code, 1);
  EXPECT_EQ(RunJson({"artifacts", "delete", "aaaa"}), Json::object());
  EXPECT_EQ(services_.num_deleted, 1);
}

TEST_F(CommandsTest, ExportVerifies) {
  const std::string source = directory_.Path("artifact");
  ASSERT_OK_AND_ASSIGN(const std::string id, WriteArtifact(TinyModel(), TinyLineage(), source));
  services_.artifact.set_name("artifacts/" + id);
  ASSERT_OK_AND_ASSIGN(const auto names, ListDirectory(source));
  for (const std::string& name : names) {
    services_.files[name] = ReadFile(source + "/" + name, 1 << 24).value();
    services_.artifact.add_files()->set_path(name);
  }
  const Result good = RunConnected({"artifacts", "export", id, directory_.Path("out")});
  EXPECT_EQ(good.exit_code, 0) << good.error;
  EXPECT_OK(LoadArtifact(directory_.Path("out"), id));
  EXPECT_EQ(RunConnected({"artifacts", "export", id, directory_.Path("out")}).exit_code, 1);
  const std::string floats = directory_.Path("floats");
  EXPECT_THAT(RunConnected({"artifacts", "export", id, floats, "--as=huggingface"}).output,
              HasSubstr("written as huggingface"));
  EXPECT_OK(OpenCheckpoint(floats));
  EXPECT_FALSE(std::filesystem::exists(floats + ".partial"));
  const std::string gptq = directory_.Path("gptq");
  EXPECT_THAT(RunConnected({"artifacts", "export", id, gptq, "--as=gptq"}).error,
              HasSubstr("multiples of 32"));
  EXPECT_FALSE(std::filesystem::exists(gptq));
  EXPECT_FALSE(std::filesystem::exists(gptq + ".partial"));

  services_.files["model.safetensors"].back() ^= 1;
  const Result damaged = RunConnected({"artifacts", "export", id, directory_.Path("other")});
  EXPECT_EQ(damaged.exit_code, 1);
  EXPECT_THAT(damaged.error, HasSubstr("DATA_LOSS"));
  EXPECT_FALSE(std::filesystem::exists(directory_.Path("other")));
  services_.artifact.mutable_files(0)->set_path("../evil");
  EXPECT_EQ(RunConnected({"artifacts", "export", id, directory_.Path("other")}).exit_code, 1);
  EXPECT_FALSE(std::filesystem::exists(directory_.Path("evil")));
}

TEST_F(CommandsTest, Models) {
  EXPECT_EQ(RunJson({"models", "list"}).at("models").at(0).at("name"), "models/m");
  EXPECT_EQ(RunJson({"models", "load", "m", "aaaa"}).at("state"), "ACTIVE");
  EXPECT_EQ(services_.created_model.model().artifact(), "artifacts/" + kDigest);
  EXPECT_EQ(RunJson({"models", "load", "m", "--checkpoint=tiny", "--no-wait"}).at("state"),
            "LOADING");
  EXPECT_EQ(services_.created_model.model().checkpoint(), "tiny");
  EXPECT_EQ(services_.created_model.model().kv_cache_type(),
            inference::v1::Model::KV_CACHE_TYPE_UNSPECIFIED);
  services_.model.set_kv_cache_type(inference::v1::Model::INT8);
  services_.model.set_kv_cache_kl(0.00025);
  EXPECT_THAT(RunConnected({"models", "load", "m", "aaaa", "--kv-cache=int8"}).output,
              HasSubstr("KV cache of int8 (KL to half floats 0.00025)"));
  EXPECT_EQ(services_.created_model.model().kv_cache_type(), inference::v1::Model::INT8);
  EXPECT_FALSE(services_.created_model.model().has_speculation());
  services_.model.mutable_speculation()->set_max_guesses(4);
  EXPECT_THAT(RunConnected({"models", "load", "m", "aaaa", "--speculate=4"}).output,
              HasSubstr("speculating 4 tokens ahead by prompt lookup"));
  EXPECT_EQ(services_.created_model.model().speculation().max_guesses(), 4);
  services_.model.mutable_speculation()->set_draft_artifact("artifacts/" + kDigest);
  EXPECT_THAT(RunConnected({"models", "load", "m", "aaaa", "--speculate=4", "--draft=aaaa"}).output,
              HasSubstr("by artifact aaaaaaaaaaaa"));
  EXPECT_EQ(services_.created_model.model().speculation().draft_artifact(), "artifacts/" + kDigest);
  EXPECT_EQ(RunConnected({"models", "load", "m", "aaaa", "--draft=aaaa"}).exit_code, 2);
  EXPECT_EQ(RunConnected({"models", "load", "m"}).exit_code, 1);
  EXPECT_EQ(RunJson({"models", "unload", "m"}), Json::object());

  services_.model.set_state(inference::v1::Model::FAILED);
  services_.model.set_failure_message("DATA_LOSS: bad bytes");
  const Result failed = RunConnected({"models", "load", "m", "aaaa"});
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_THAT(failed.error, HasSubstr("bad bytes"));
}

TEST_F(CommandsTest, ModelAliases) {
  services_.model.add_aliases("aliases/prod");
  EXPECT_THAT(RunConnected({"models", "list"}).output, HasSubstr(" prod\n"));
  EXPECT_EQ(RunJson({"models", "alias", "prod", "m"}).at("model"), "models/m");
  EXPECT_EQ(services_.updated_alias.alias().name(), "aliases/prod");
  EXPECT_TRUE(services_.updated_alias.allow_missing());
  EXPECT_EQ(services_.updated_alias.alias().etag(), "");

  services_.alias.set_model("models/old");
  services_.alias.set_etag("e");
  RunJson({"models", "alias", "prod", "m", "--expect=old"});
  EXPECT_EQ(services_.updated_alias.alias().etag(), "e");
  const Result other = RunConnected({"models", "alias", "prod", "m", "--expect=other"});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.error, HasSubstr("stands for models/old"));
  EXPECT_EQ(RunJson({"models", "unalias", "prod"}), Json::object());
}

TEST_F(CommandsTest, BenchServeSumsUpWhatClientsSaw) {
  ScriptAnswer();
  const std::vector<std::string> run = {"bench",
                                        "serve",
                                        "m",
                                        "--rate=20,40",
                                        "--seconds=1",
                                        "--prompt-tokens=5",
                                        "--output-tokens=8"};
  const Json json = RunJson(run);
  ASSERT_EQ(json.at("rows").size(), 2U);
  for (const Json& row : json.at("rows")) {
    EXPECT_GT(row.at("answered"), 0);
    EXPECT_EQ(row.at("failures"), Json::object());
    EXPECT_GT(row.at("firstTokenSeconds").at("p50"), 0.0);
    EXPECT_GE(row.at("firstTokenSeconds").at("p99"), row.at("firstTokenSeconds").at("p50"));
    EXPECT_GT(row.at("goodPerSecond"), 0.0);
  }
  EXPECT_EQ(services_.generated().model(), "models/m");
  EXPECT_EQ(services_.generated().prompt_tokens().ids_size(), 5);
  EXPECT_EQ(services_.generated().max_output_tokens(), 8);
  EXPECT_TRUE(services_.generated().ignore_end_of_text());
  // A model that is not there is said at once.
  services_.failure = grpc::Status(grpc::StatusCode::NOT_FOUND, "no such model");
  const Result result = RunConnected(run);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.error, HasSubstr("no such model"));
}

TEST_F(CommandsTest, CompletePrintsWhatWasGenerated) {
  ScriptAnswer();
  const Result result = RunConnected({"complete", "m", "France:", "--temperature=0.5", "--top-k=4",
                                      "--top-p=0.9", "--min-p=0.1", "--seed=3", "--max-tokens=8",
                                      "--stop=x", "--stop=y", "--stats"});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_EQ(result.output, "The capital is Paris.\n");
  EXPECT_THAT(result.error, HasSubstr("11 tokens, 10.0 tokens/s"));
  const auto request = services_.generated();
  EXPECT_EQ(request.model(), "models/m");
  EXPECT_EQ(request.prompt(), "France:");
  EXPECT_FLOAT_EQ(request.sampling().temperature(), 0.5F);
  EXPECT_EQ(request.sampling().top_k(), 4);
  EXPECT_FLOAT_EQ(request.sampling().top_p(), 0.9F);
  EXPECT_FLOAT_EQ(request.sampling().min_p(), 0.1F);
  EXPECT_EQ(request.sampling().seed(), 3);
  EXPECT_EQ(request.max_output_tokens(), 8);
  EXPECT_EQ(request.stop_sequences_size(), 2);

  const Json json = RunJson({"complete", "m", "France:"});
  EXPECT_EQ(json.at("text"), "The capital is Paris.");
  EXPECT_EQ(json.at("tokenIds"), Json({1, 2}));
  EXPECT_EQ(json.at("finishReason"), "END_OF_TEXT");
  EXPECT_EQ(json.at("usage").at("outputTokens"), 11);
  EXPECT_EQ(json.at("seed"), "7");
}

TEST_F(CommandsTest, ChatSendsMessages) {
  ScriptAnswer();
  const Result result = RunConnected({"chat", "m", "Hello", "--system=Be brief."});
  EXPECT_EQ(result.exit_code, 0) << result.error;
  EXPECT_EQ(result.output, "The capital is Paris.\n");
  EXPECT_EQ(result.error, "");
  ASSERT_EQ(services_.generated().chat().messages_size(), 2);
  EXPECT_EQ(services_.generated().chat().messages(0).content(), "Be brief.");
  EXPECT_EQ(services_.generated().chat().messages(1).role(), inference::v1::Chat::Message::USER);

  services_.model.set_chat_format("none");
  EXPECT_THAT(RunConnected({"chat", "m", "Hello"}).error, HasSubstr("as plain text"));
}

TEST_F(CommandsTest, InterruptCancelsTheGeneration) {
  ScriptAnswer();
  services_.generation_stays_open = true;
  const auto process = Start(Connected({"complete", "m", "Once"}));
  ASSERT_TRUE(Eventually([&] { return services_.open.load(); }));
  ASSERT_OK(process->Signal(SIGINT));
  EXPECT_EQ(Finish(*process).exit_code, 1);
  EXPECT_TRUE(Eventually([&] { return services_.client_left.load(); }));
}

}  // namespace
}  // namespace quern

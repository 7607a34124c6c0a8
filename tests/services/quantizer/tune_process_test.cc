// quern-quantizer with tasks that tune.

#include <filesystem>

#include "core/artifact/artifact.h"
#include "core/artifact/scale_delta.h"
#include "tests/services/quantizer/quantizer_process.h"

namespace quern {
namespace {

using testing::HasSubstr;

class TuneProcessTest : public QuantizerProcessTest {
 protected:
  void SetUp() override {
    QuantizerProcessTest::SetUp();
    std::filesystem::create_directories(Path("artifacts"));
    const Finished base = Run(TaskJson("RTN"), "base");
    ASSERT_EQ(base.exit.exit_code, 0) << base.last();
    base_ = base.last()["artifact"];
    std::filesystem::rename(Path("base/artifact"), Path("artifacts/" + base_));
    extra_flags_ = {"--kind", "tune", "--artifact-root", Path("artifacts")};
    std::string lines;
    for (int i = 0; i < 20; ++i) {
      lines += R"({"messages":[{"role":"user","content":"say )" + std::to_string(i) +
               R"("},{"role":"assistant","content":"the the the )" + std::to_string(i % 3) +
               "\"}]}\n";
    }
    WriteAll(Path("data/chat.jsonl"), lines);
  }

  std::string TuneJson(const std::string& data, const std::string& settings,
                       const std::string& fields = "") const {
    return R"({"base":"artifacts/)" + base_ + R"(","data":{"path":")" + data +
           R"("},"settings":{)" + settings + "}" + fields + "}";
  }

  std::string base_;
};

constexpr char kFew[] = R"("epochCount":3,"batchSize":4,"learningRate":0.02)";

TEST_F(TuneProcessTest, GivesAScaleDeltaThatLearntTheResponses) {
  WriteAll(Path("data/text.txt"), std::string(3000, 'a') + " b c d\n");
  const std::string task =
      TuneJson("chat.jsonl", kFew,
               R"(,"evaluation":{"path":"text.txt","chunkTokens":32,"maxChunkCount":2})");
  const Finished finished = Run(task, "work");
  ASSERT_EQ(finished.exit.exit_code, 0) << finished.last();
  const Json& result = finished.last();
  const Json& rows = result["evaluation"]["rows"];
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0]["model"], "base");
  EXPECT_EQ(rows[0]["dataset"], "held out");
  EXPECT_EQ(rows[1]["model"], "result");
  EXPECT_LT(rows[1]["perplexity"].get<double>(), 0.9 * rows[0]["perplexity"].get<double>());
  EXPECT_GT(rows[1]["klDivergence"].get<double>(), 0);
  EXPECT_EQ(rows[2]["dataset"], "text.txt");

  ASSERT_OK_AND_ASSIGN(const LoadedArtifact base, LoadArtifact(Path("artifacts/" + base_), base_));
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact delta, LoadScaleDelta(Path("work/artifact"), base,
                                                                  std::string(result["artifact"])));
  EXPECT_EQ(delta.manifest.base, base_);
  EXPECT_EQ(delta.manifest.lineage.checkpoint_digest, base.manifest.lineage.checkpoint_digest);

  // The same task elsewhere: the same bytes. In the same place: the result, without training.
  EXPECT_EQ(Run(task, "other").last()["artifact"], result["artifact"]);
  const Finished again = Run(task, "work");
  EXPECT_EQ(again.last(), result);
  for (const Json& event : again.events) EXPECT_NE(event.value("stage", ""), "E2E_QP");
}

TEST_F(TuneProcessTest, KilledItGoesOnToTheSameBytes) {
  const std::string task = TuneJson("chat.jsonl", kFew);
  const Finished whole = Run(task, "whole");
  ASSERT_EQ(whole.exit.exit_code, 0) << whole.last();
  const std::unique_ptr<Subprocess> process = Start(task, "work");
  ASSERT_NE(process, nullptr);
  for (Json event = NextEvent(*process); !event.is_null(); event = NextEvent(*process)) {
    if (event.value("stage", "") == "E2E_QP" && event.value("completed", 0) > 0) break;
  }
  ASSERT_OK(process->Signal(SIGKILL));
  ASSERT_OK(process->Wait(absl::Now() + kPatience));
  EXPECT_EQ(Run(task, "work").last()["artifact"], whole.last()["artifact"]);
}

TEST_F(TuneProcessTest, PlainPairsAreExamplesToo) {
  std::string lines;
  for (int i = 0; i < 6; ++i)
    lines += R"({"prompt":"say","response":"the the"})"
             "\n";
  WriteAll(Path("data/pairs.jsonl"), lines);
  const Finished finished = Run(
      TuneJson("pairs.jsonl", R"("epochCount":1,"heldOutCount":0,"learningRate":0.02)"), "work");
  ASSERT_EQ(finished.exit.exit_code, 0) << finished.last();
  EXPECT_TRUE(finished.last()["evaluation"]["rows"].empty()) << "nothing was held back";
}

TEST_F(TuneProcessTest, AnEvaluationMeasuresArtifactsAndDeltas) {
  const Finished tuned = Run(TuneJson("chat.jsonl", kFew), "work");
  ASSERT_EQ(tuned.exit.exit_code, 0) << tuned.last();
  const std::string delta = tuned.last()["artifact"];
  std::filesystem::rename(Path("work/artifact"), Path("artifacts/" + delta));
  WriteAll(Path("data/text.txt"), std::string(3000, 'a') + " b c d\n");
  // Far more than the job's engine computes at once.
  std::string items;
  for (int i = 0; i < 200; ++i) {
    items += R"({"query":"say","choices":["the the","1 2 3"],"gold":0})"
             "\n"
             R"({"query":"say 1","choices":["x","the the"],"gold":1})"
             "\n";
  }
  WriteAll(Path("data/tasks.jsonl"), items);
  extra_flags_[1] = "evaluate";
  const auto evaluate = [&](const std::string& artifact, const std::string& fields) {
    return R"({"artifact":"artifacts/)" + artifact + "\"," + fields + "}";
  };
  const std::string data = R"("texts":[{"path":"text.txt","chunkTokens":32,"maxChunkCount":2}],)"
                           R"("zeroShot":[{"path":"tasks.jsonl"}])";
  // By itself, a delta on its base, and either against a checkpoint.
  struct Case {
    std::string artifact;
    std::string reference;
    std::vector<std::string> models;
  };
  const std::string reference = R"(,"reference":{"path":"tiny"})";
  for (const Case& c : {Case{base_, "", {"artifact"}}, Case{delta, "", {"base", "artifact"}},
                        Case{base_, reference, {"source", "artifact"}},
                        Case{delta, reference, {"source", "artifact"}}}) {
    SCOPED_TRACE(c.artifact + c.reference);
    const Finished finished = Run(evaluate(c.artifact, data + c.reference), "evaluation");
    ASSERT_EQ(finished.exit.exit_code, 0) << finished.last();
    EXPECT_EQ(finished.last()["artifact"], "");
    const Json& rows = finished.last()["evaluation"]["rows"];
    const Json& zero_shot = finished.last()["evaluation"]["zeroShotRows"];
    ASSERT_EQ(rows.size(), c.models.size());
    ASSERT_EQ(zero_shot.size(), c.models.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_EQ(rows[i]["model"], c.models[i]);
      EXPECT_EQ(rows[i]["dataset"], "text.txt");
      EXPECT_EQ(zero_shot[i]["model"], c.models[i]);
      EXPECT_EQ(zero_shot[i]["task"], "tasks");
      EXPECT_EQ(zero_shot[i]["itemCount"], "400");
    }
    if (rows.size() == 2) {
      EXPECT_GT(rows[1]["klDivergence"].get<double>(), 0);
    }
  }

  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError(evaluate(base_, R"("texts":[])"), invalid, "INVALID_TASK",
              "wanted one to measure on");
  ExpectError(evaluate(base_, R"("texts":[{"path":"none.txt"}])"), absl::StatusCode::kNotFound,
              "EVALUATION_INVALID", "none.txt");
  ExpectError(evaluate(base_, R"("zeroShot":[{"path":"chat.jsonl"}])"), invalid,
              "EVALUATION_INVALID", "zero_shot, chat.jsonl");
  ExpectError(evaluate(std::string(64, 'a'), data), absl::StatusCode::kNotFound, "BASE_INVALID",
              "artifact artifacts/aaa");
  ExpectError(evaluate(base_, data + R"(,"reference":{"path":"none"})"),
              absl::StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND", "reference.path");
  std::filesystem::remove_all(Path("artifacts/" + base_));
  ExpectError(evaluate(delta, data), absl::StatusCode::kNotFound, "BASE_INVALID", base_);
}

TEST_F(TuneProcessTest, RefusesWhatItCannotLearnFrom) {
  const auto expect = [&](const std::string& line, const std::string& message) {
    WriteAll(Path("data/bad.jsonl"), line + "\n");
    ExpectError(TuneJson("bad.jsonl", kFew), absl::StatusCode::kInvalidArgument,
                "CALIBRATION_INVALID", message);
  };
  expect("", "holds no example");
  expect("{", "bad.jsonl: line 1");
  expect(R"({"text":"a"})", "has a field \"text\"; wanted messages, or prompt and response");
  expect(R"({"prompt":"a"})", "response");
  expect(R"({"prompt":" ","response":"a"})", "prompt is blank");
  expect(R"({"prompt":"a","response":"\n"})", "a response is blank");
  expect(R"({"messages":[{"role":"user","content":"a"}]})", "no message of the assistant");
  expect(R"({"messages":[{"role":"robot","content":"a"}]})", "role is \"robot\"");
  expect(R"({"messages":[{"role":"assistant","content":"a"}]})", "line 1");
  expect(R"({"messages":"a"})", "messages");
  expect(R"({"prompt":"a","response":"b","x":1})", "has a field \"x\"");
  const std::string one = R"({"prompt":"a","response":"b"})";
  WriteAll(Path("data/bad.jsonl"), one + "\n");
  ExpectError(TuneJson("bad.jsonl", R"("heldOutCount":1)"), absl::StatusCode::kInvalidArgument,
              "CALIBRATION_INVALID", "has 1 examples, of which 1 are to be held back");
  WriteAll(Path("data/bad.jsonl"), R"({"prompt":")" + std::string(2000, 'x') +
                                       R"(","response":"b"})"
                                       "\n");
  ExpectError(TuneJson("bad.jsonl", kFew), absl::StatusCode::kInvalidArgument,
              "CALIBRATION_INVALID", "(1 whose prompts alone are longer)");
}

TEST_F(TuneProcessTest, RefusesWrongTasksAndBases) {
  const auto invalid = absl::StatusCode::kInvalidArgument;
  ExpectError(TuneJson("chat.jsonl", R"("trainable":"ALL")"), invalid, "INVALID_TASK",
              "trainable is ALL, wanted SCALES or SCALES_AND_NORMS");
  ExpectError(TuneJson("chat.jsonl", R"("sequenceLengthTokens":512)"), invalid, "INVALID_TASK",
              "the model's context is 256");
  ExpectError(TuneJson("chat.jsonl", R"("epochCount":0)"), invalid, "INVALID_TASK",
              "equal to its base");
  ExpectError(TuneJson("chat.txt", ""), invalid, "INVALID_TASK", "ends in .jsonl");
  ExpectError(TuneJson("../chat.jsonl", ""), invalid, "INVALID_TASK", "without '..'");
  ExpectError(R"({"base":"artifacts/xyz","data":{"path":"chat.jsonl"}})", invalid, "INVALID_TASK",
              "wanted artifacts/ and 64 hex digits");
  const std::string other(64, 'a');
  ExpectError(R"({"base":"artifacts/)" + other + R"(","data":{"path":"chat.jsonl"}})",
              absl::StatusCode::kNotFound, "BASE_INVALID", "base artifacts/" + other);
  // A damaged one.
  const std::string weights = Path("artifacts/" + base_ + "/model.safetensors");
  std::string bytes = ReadAll(weights);
  bytes[bytes.size() / 2] ^= 1;
  WriteAll(weights, bytes);
  ExpectError(TuneJson("chat.jsonl", kFew), absl::StatusCode::kDataLoss, "BASE_INVALID",
              "model.safetensors");
}

}  // namespace
}  // namespace quern

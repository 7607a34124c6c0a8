// What a user can get wrong, through the real program: the error event says what, nothing is
// written.

#include <sys/stat.h>

#include "tests/services/quantizer/quantizer_process.h"

namespace quern {
namespace {

using absl::StatusCode;

TEST_F(QuantizerProcessTest, BadTasks) {
  ExpectError("{", StatusCode::kInvalidArgument, "INVALID_TASK", "task");
  ExpectError(TaskJson("HQQ"), StatusCode::kInvalidArgument, "INVALID_TASK", "method is \"HQQ\"");
  ExpectError(TaskJson("RTN", R"(,"resolved":{})"), StatusCode::kInvalidArgument, "INVALID_TASK",
              "resolved is output only");
  ExpectError(R"({"checkpoint":{"path":"tiny"},"format":{"bits":5},"method":"RTN"})",
              StatusCode::kInvalidArgument, "INVALID_TASK", "format.bits is 5");
  ExpectError(R"({"checkpoint":{"path":"tiny"},"format":{"bits":4},)"
              R"("blockAp":{"sequenceLengthTokens":512}})",
              StatusCode::kInvalidArgument, "INVALID_TASK", "the model's context is 256 tokens");
  ExpectError(R"({"checkpoint":{"path":"../tiny"},"format":{"bits":4}})",
              StatusCode::kInvalidArgument, "INVALID_TASK", "checkpoint.path");
}

TEST_F(QuantizerProcessTest, BadCheckpoints) {
  const auto task = [](const std::string& path, const std::string& digest = "") {
    return R"({"checkpoint":{"path":")" + path + R"(","digest":")" + digest +
           R"("},"format":{"bits":4},"method":"RTN"})";
  };
  ExpectError(task("nothing"), StatusCode::kNotFound, "CHECKPOINT_NOT_FOUND", "checkpoint.path");
  ExpectError(task("tiny", std::string(64, '0')), StatusCode::kFailedPrecondition,
              "CHECKPOINT_CHANGED", "the files were changed");
  std::filesystem::create_symlink("/", Path("models/outside"));
  ExpectError(task("outside/etc"), StatusCode::kPermissionDenied, "CHECKPOINT_NOT_FOUND",
              "checkpoint.path");

  const std::string weights = ReadAll(Path("models/tiny/model.safetensors"));
  WriteAll(Path("models/tiny/model.safetensors"), weights.substr(0, weights.size() - 4));
  ExpectError(task("tiny"), StatusCode::kDataLoss, "CHECKPOINT_DAMAGED", "model.safetensors");
  // The last tensor's last number: not a number.
  WriteAll(Path("models/tiny/model.safetensors"),
           weights.substr(0, weights.size() - 4) + "\xff\xff\xff\x7f");
  const Finished finished = Run(task("tiny"), "bad");
  EXPECT_EQ(finished.last().value("reason", ""), "CHECKPOINT_DAMAGED") << finished.last();
}

TEST_F(QuantizerProcessTest, BadCalibration) {
  const auto task = [](const std::string& path) {
    return TaskJson("BLOCK_AP", R"(,"calibration":{"path":")" + path + "\"}");
  };
  const auto expect = [&](const std::string& path, StatusCode code, const std::string& message) {
    ExpectError(task(path), code, "CALIBRATION_INVALID", message);
  };
  WriteAll(Path("data/empty.txt"), "");
  WriteAll(Path("data/short.txt"), "a");
  WriteAll(Path("data/binary.txt"), "good \xff\xfe bad");
  WriteAll(Path("data/broken.jsonl"), "{\"text\":\"a\"}\n{\"text\":\n");
  WriteAll(Path("data/no_text.jsonl"), "{\"text\":\"a\"}\n\n{\"body\":\"b\"}\n");
  std::filesystem::create_directory(Path("data/folder.txt"));
  ASSERT_EQ(mkfifo(Path("data/fifo.txt").c_str(), 0600), 0);
  expect("empty.txt", StatusCode::kInvalidArgument, "holds no text");
  expect("short.txt", StatusCode::kInvalidArgument, "tokens, the task wants");
  expect("binary.txt", StatusCode::kInvalidArgument, "is not UTF-8");
  expect("broken.jsonl", StatusCode::kInvalidArgument, "line 2");
  expect("no_text.jsonl", StatusCode::kInvalidArgument, "line 3: text: found nothing");
  expect("folder.txt", StatusCode::kInvalidArgument, "folder.txt");
  expect("fifo.txt", StatusCode::kInvalidArgument, "fifo.txt");
  expect("missing.txt", StatusCode::kNotFound, "calibration.path");
}

TEST_F(QuantizerProcessTest, BadEvaluationTextIsFoundBeforeTraining) {
  WriteAll(Path("data/short.txt"), "a few words");
  ExpectError(TaskJson("BLOCK_AP", R"(,"evaluation":{"path":"short.txt","chunkTokens":64})"),
              StatusCode::kInvalidArgument, "EVALUATION_INVALID", "one chunk takes 64");
  EXPECT_FALSE(std::filesystem::exists(Path("bad/calibration.safetensors")));
}

TEST_F(QuantizerProcessTest, BadFlagsAndTaskFile) {
  const auto run = [&](std::vector<std::string> arguments) {
    Subprocess::Options options;
    options.argv = {std::string(getenv("QUERN_BIN_DIR")) + "/quern-quantizer"};
    options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
    options.capture_output = true;
    auto process = Subprocess::Start(options);
    EXPECT_OK(process);
    return Finish(**process);
  };
  const std::vector<std::string> good = {"--task",      Path("none.json"), "--work-directory",
                                         Path("bad"),   "--model-root",    Path("models"),
                                         "--data-root", Path("data")};
  EXPECT_EQ(run({}).last()["reason"], "INVALID_FLAGS");
  std::vector<std::string> threads = good;
  threads.push_back("--threads=-1");
  EXPECT_EQ(run(threads).last()["reason"], "INVALID_FLAGS");
  std::vector<std::string> device = good;
  device.push_back("--device=tpu");
  EXPECT_EQ(run(device).last()["reason"], "INVALID_FLAGS");
  const Finished missing = run(good);
  EXPECT_EQ(missing.last()["code"], static_cast<int>(StatusCode::kNotFound));
  EXPECT_EQ(missing.exit.exit_code, 1);
}

}  // namespace
}  // namespace quern

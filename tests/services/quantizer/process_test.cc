// quern-quantizer as its worker sees it: events, results, kills, cancellation.

#include <signal.h>

#include <random>
#include <set>

#include "core/artifact/artifact.h"
#include "tests/services/quantizer/quantizer_process.h"

namespace quern {
namespace {

// device, then progress and logs, then one result; counts within totals, stages in order.
void ExpectWellFormed(const std::vector<Json>& events) {
  ASSERT_GE(events.size(), 3u);
  EXPECT_EQ(events[0]["event"], "device");
  EXPECT_EQ(events[0]["device"], "cpu");
  EXPECT_NE(events[0]["name"], "");
  EXPECT_GT(events[0]["memory_bytes"].get<int64_t>(), 0);
  const std::vector<std::string> order = {"LOADING", "CALIBRATING", "BLOCK_AP",  "E2E_QP",
                                          "PACKING", "EVALUATING",  "PUBLISHING"};
  auto stage = order.begin();
  for (size_t i = 1; i + 1 < events.size(); ++i) {
    const Json& event = events[i];
    if (event["event"] == "log") continue;
    ASSERT_EQ(event["event"], "progress") << event;
    stage = std::find(stage, order.end(), event["stage"].get<std::string>());
    ASSERT_NE(stage, order.end()) << "out of order: " << event;
    EXPECT_GE(event["completed"].get<int64_t>(), 0);
    EXPECT_LE(event["completed"].get<int64_t>(), event["total"].get<int64_t>());
    if (event.contains("remaining_seconds")) {
      EXPECT_GE(event["remaining_seconds"].get<double>(), 0);
    }
  }
  const Json& result = events.back();
  ASSERT_EQ(result["event"], "result") << result;
  EXPECT_EQ(result["artifact"].get<std::string>().size(), 64u);
}

std::set<std::string> StagesOf(const std::vector<Json>& events) {
  std::set<std::string> stages;
  for (const Json& event : events) stages.insert(event.value("stage", ""));
  return stages;
}

TEST_F(QuantizerProcessTest, RoundToNearest) {
  const Finished first = Run(TaskJson("RTN"), "work");
  ASSERT_EQ(first.exit.exit_code, 0) << first.last();
  ASSERT_NO_FATAL_FAILURE(ExpectWellFormed(first.events));
  const std::string id = first.last()["artifact"];
  EXPECT_EQ(first.last()["directory"], Path("work/artifact"));
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact artifact, LoadArtifact(Path("work/artifact"), id));
  EXPECT_EQ(artifact.manifest.format, (QuantFormat{.bits = 3, .group_size = 64}));
  EXPECT_EQ(artifact.manifest.lineage.calibration_digest, "");
  EXPECT_FALSE(artifact.model.tokenizer_json.empty());

  const Json& rows = first.last()["evaluation"]["rows"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["model"], "source");
  EXPECT_EQ(rows[0]["klDivergence"], 0.0);
  EXPECT_EQ(rows[0]["top1Agreement"], 1.0);
  EXPECT_EQ(rows[1]["model"], "result");
  EXPECT_EQ(rows[1]["dataset"], "sampled");
  EXPECT_EQ(rows[1]["tokenCount"], "2040");  // 8 sequences of 256, the first token is not scored
  EXPECT_GT(rows[1]["klDivergence"].get<double>(), 0);

  // Another directory: the same name. The same one: the result at once, without any work.
  EXPECT_EQ(Run(TaskJson("RTN"), "other").last()["artifact"], id);
  const Finished again = Run(TaskJson("RTN"), "work");
  EXPECT_EQ(again.last(), first.last());
  EXPECT_EQ(StagesOf(again.events), (std::set<std::string>{"", "LOADING"}));
}

TEST_F(QuantizerProcessTest, BlockApAndE2eQp) {
  WriteAll(Path("data/text.txt"), std::string(4000, 'a') + " b c d\n");
  const std::string task = TaskJson(
      "BLOCK_AP_E2E_QP", R"(,"evaluation":{"path":"text.txt","chunkTokens":32,"maxChunkCount":2})");
  const Finished finished = Run(task, "work");
  ASSERT_EQ(finished.exit.exit_code, 0) << finished.last();
  ASSERT_NO_FATAL_FAILURE(ExpectWellFormed(finished.events));
  const Json& rows = finished.last()["evaluation"]["rows"];
  ASSERT_EQ(rows.size(), 6u);
  const char* models[] = {"source", "rtn", "result"};
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(rows[i]["model"], models[i % 3]);
    EXPECT_EQ(rows[i]["dataset"], i < 3 ? "sampled" : "text.txt");
  }
  bool has_block_loss = false;
  bool has_step_loss = false;
  for (const Json& event : finished.events) {
    has_block_loss |= event.value("stage", "") == "BLOCK_AP" && event.contains("loss");
    has_step_loss |= event.value("stage", "") == "E2E_QP" && event.contains("loss");
  }
  EXPECT_TRUE(has_block_loss);
  EXPECT_TRUE(has_step_loss);
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact artifact, LoadArtifact(Path("work/artifact")));
  EXPECT_EQ(artifact.manifest.lineage.calibration_digest.size(), 64u);
  // The trainer's files are gone, the result and the ids stay.
  EXPECT_FALSE(std::filesystem::exists(Path("work/training")));
  EXPECT_TRUE(std::filesystem::exists(Path("work/calibration.safetensors")));

  EXPECT_EQ(Run(task, "other").last()["artifact"], artifact.id);
}

TEST_F(QuantizerProcessTest, CalibrationTextGivesTheSameArtifactWhereverItLies) {
  std::string text;
  for (int i = 0; i < 2000; ++i) text += "word" + std::to_string(i * 7919 % 1000) + " ";
  WriteAll(Path("data/a.txt"), text);
  WriteAll(Path("data/b.jsonl"), Json{{"text", text}}.dump() + "\n");
  const Finished a = Run(TaskJson("BLOCK_AP", R"(,"calibration":{"path":"a.txt"})"), "a");
  ASSERT_EQ(a.exit.exit_code, 0) << a.last();
  const Finished b = Run(TaskJson("BLOCK_AP", R"(,"calibration":{"path":"b.jsonl"})"), "b");
  ASSERT_EQ(b.exit.exit_code, 0) << b.last();
  EXPECT_EQ(a.last()["artifact"], b.last()["artifact"]);
}

// Streams of states that are larger than their memory lie on the disk: of 256 sequences 2 MiB.
TEST_F(QuantizerProcessTest, StatesBeyondTheirMemoryLieOnTheDisk) {
  WriteAll(Path("data/text.txt"), std::string(20000, 'a') + " b c d\n");
  std::string task = TaskJson("GPTQ", R"(,"calibration":{"path":"text.txt"})");
  const std::string epochs = R"(,"epochCount":2)";
  task.erase(task.find(epochs), epochs.size());
  task.replace(task.find(R"("sampleCount":4)"), 15, R"("sampleCount":256)");
  const Finished in_memory = Run(task, "memory");
  ASSERT_EQ(in_memory.exit.exit_code, 0) << in_memory.last();
  extra_flags_ = {"--activation-memory-mib", "1"};
  const Finished on_disk = Run(task, "disk");
  ASSERT_EQ(on_disk.exit.exit_code, 0) << on_disk.last();
  EXPECT_EQ(on_disk.last()["artifact"], in_memory.last()["artifact"]);

  // No file may be larger than 1 MiB: a disk without room, as far as one process can have it.
  launcher_ = {"/bin/sh", "-c", "ulimit -f 2048; exec \"$@\"", "sh"};
  ExpectError(task, absl::StatusCode::kResourceExhausted, "OUT_OF_DISK",
              "cannot take 2097152 bytes of disk for a scratch file");
  // The same limit with the states in memory: nothing else is as large.
  extra_flags_.clear();
  EXPECT_EQ(Run(task, "limited").last()["artifact"], in_memory.last()["artifact"]);
}

// Whatever lies in memory that was not written must not reach the artifact.
TEST_F(QuantizerProcessTest, UninitializedMemoryDoesNotReachTheArtifact) {
  for (const char* method : {"RTN", "BLOCK_AP_E2E_QP"}) {
    SCOPED_TRACE(method);
    ASSERT_EQ(Run(TaskJson(method), "p85", {{"MALLOC_PERTURB_", "85"}}).exit.exit_code, 0);
    ASSERT_EQ(Run(TaskJson(method), "p170", {{"MALLOC_PERTURB_", "170"}}).exit.exit_code, 0);
    EXPECT_EQ(ArtifactOf("p85"), ArtifactOf("p170"));
    std::filesystem::remove_all(Path("p85"));
    std::filesystem::remove_all(Path("p170"));
  }
}

// Killed at ten random events, each time started again in the same directory.
TEST_F(QuantizerProcessTest, TenKillsDoNotChangeTheArtifact) {
  const std::string task = TaskJson("BLOCK_AP_E2E_QP");
  const Finished undisturbed = Run(task, "undisturbed");
  ASSERT_EQ(undisturbed.exit.exit_code, 0) << undisturbed.last();
  const int num_events = static_cast<int>(undisturbed.events.size());

  std::mt19937 random(11);
  for (int kill = 0; kill < 10; ++kill) {
    const std::unique_ptr<Subprocess> process = Start(task, "killed");
    ASSERT_NE(process, nullptr);
    // A run that goes on has fewer events; it may end before.
    const int last_event = 1 + static_cast<int>(random() % (num_events - 1));
    for (int i = 0; i < last_event; ++i) {
      if (NextEvent(*process).is_null()) break;
    }
    process->Signal(SIGKILL).IgnoreError();  // it may have ended by itself
    ASSERT_OK(process->Wait(absl::Now() + kPatience));
  }
  const Finished finished = Run(task, "killed");
  ASSERT_EQ(finished.exit.exit_code, 0) << finished.last();
  EXPECT_EQ(finished.last()["artifact"], undisturbed.last()["artifact"]);
  EXPECT_EQ(finished.last()["evaluation"], undisturbed.last()["evaluation"]);
  EXPECT_EQ(ArtifactOf("killed"), ArtifactOf("undisturbed"));
}

TEST_F(QuantizerProcessTest, DamagedWorkIsDoneAgain) {
  const std::string task = TaskJson("BLOCK_AP_E2E_QP");
  const Finished first = Run(task, "work");
  ASSERT_EQ(first.exit.exit_code, 0);
  const std::string id = first.last()["artifact"];
  for (const char* name : {"artifact/model.safetensors", "calibration.safetensors", "result.json",
                           "held_out.safetensors"}) {
    SCOPED_TRACE(name);
    std::string bytes = ReadAll(Path(std::string("work/") + name));
    ASSERT_FALSE(bytes.empty());
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    WriteAll(Path(std::string("work/") + name), bytes);
    const Finished again = Run(task, "work");
    ASSERT_EQ(again.exit.exit_code, 0) << again.last();
    EXPECT_EQ(again.last()["artifact"], id);
    EXPECT_OK(LoadArtifact(Path("work/artifact"), id));
  }
}

TEST_F(QuantizerProcessTest, AnotherTaskInTheSameDirectoryDoesNotGetTheOldResult) {
  const Finished three = Run(TaskJson("RTN"), "work");
  const Finished other =
      Run(R"({"checkpoint":{"path":"tiny"},"format":{"bits":4,"groupSize":64},"method":"RTN"})",
          "work");
  ASSERT_EQ(other.exit.exit_code, 0);
  EXPECT_NE(other.last()["artifact"], three.last()["artifact"]);
  EXPECT_OK(LoadArtifact(Path("work/artifact"), other.last()["artifact"].get<std::string>()));
}

// In each stage that takes a while.
TEST_F(QuantizerProcessTest, SigtermCancels) {
  const std::string task =
      R"({"checkpoint":{"path":"tiny"},"format":{"bits":3,"groupSize":64},)"
      R"("blockAp":{"sampleCount":256,"sequenceLengthTokens":128,"epochCount":8},)"
      R"("e2eQp":{"sampleCount":4,"sequenceLengthTokens":32}})";
  for (const char* stage : {"CALIBRATING", "BLOCK_AP"}) {
    SCOPED_TRACE(stage);
    const std::unique_ptr<Subprocess> process = Start(task, "work");
    ASSERT_NE(process, nullptr);
    for (Json event = NextEvent(*process); event.value("stage", "") != stage;
         event = NextEvent(*process)) {
      ASSERT_FALSE(event.is_null());
    }
    ASSERT_OK(process->Signal(SIGTERM));
    const Finished finished = Finish(*process);
    EXPECT_EQ(finished.exit.exit_code, 1);
    EXPECT_EQ(finished.last().value("event", ""), "error");
    EXPECT_EQ(finished.last().value("code", 0), 1);
    EXPECT_EQ(finished.last().value("reason", ""), "CANCELLED");
    EXPECT_FALSE(std::filesystem::exists(Path("work/artifact")));
  }
}

TEST_F(QuantizerProcessTest, OneProcessAtATimeInADirectory) {
  const std::unique_ptr<Subprocess> first = Start(TaskJson("BLOCK_AP_E2E_QP"), "work");
  ASSERT_NE(first, nullptr);
  while (NextEvent(*first).value("completed", 0) == 0) continue;  // past the lock
  // Held there: it must not end before the second has looked.
  ASSERT_OK(first->Signal(SIGSTOP));
  const Finished second = Run(TaskJson("BLOCK_AP_E2E_QP"), "work");
  ASSERT_OK(first->Signal(SIGCONT));
  EXPECT_EQ(second.exit.exit_code, 1);
  EXPECT_EQ(second.last().value("reason", ""), "WORK_DIRECTORY_IN_USE");
  EXPECT_EQ(Finish(*first).exit.exit_code, 0);
}

TEST_F(QuantizerProcessTest, LinksNoGrpcAndNoProtobuf) {
  Subprocess::Options options;
  options.argv = {"/usr/bin/ldd", std::string(getenv("QUERN_BIN_DIR")) + "/quern-quantizer"};
  options.capture_output = true;
  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Subprocess> ldd, Subprocess::Start(options));
  bool has_torch = false;
  while (true) {
    ASSERT_OK_AND_ASSIGN(const auto line, ldd->ReadLine(absl::Now() + kPatience));
    if (!line.has_value()) break;
    has_torch |= line->find("libtorch_cpu") != std::string::npos;
    EXPECT_EQ(line->find("libgrpc"), std::string::npos) << *line;
    EXPECT_EQ(line->find("libprotobuf"), std::string::npos) << *line;
  }
  EXPECT_TRUE(has_torch);
}

}  // namespace
}  // namespace quern

#ifndef QUERN_TESTS_SERVICES_QUANTIZER_QUANTIZER_PROCESS_H_
#define QUERN_TESTS_SERVICES_QUANTIZER_QUANTIZER_PROCESS_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/base/json.h"
#include "core/base/subprocess.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace quern {

// The real program on a tiny checkpoint: model root with "tiny", an empty data root.
class QuantizerProcessTest : public testing::Test {
 protected:
  static constexpr absl::Duration kPatience = absl::Minutes(3);

  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "quern_XXXXXX").string();
    root_ = mkdtemp(pattern.data());
    std::filesystem::create_directories(Path("data"));
    ASSERT_OK(WriteTinyCheckpoint(Path("models/tiny")));
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string Path(const std::string& name) const { return root_ + "/" + name; }

  static void WriteAll(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }
  static std::string ReadAll(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream bytes;
    bytes << file.rdbuf();
    return bytes.str();
  }

  // A small task on "tiny"; `fields` is added.
  static std::string TaskJson(const std::string& method, const std::string& fields = "") {
    std::string json = R"({"checkpoint":{"path":"tiny"},"format":{"bits":3,"groupSize":64},)"
                       R"("preset":"QUICK","seed":"7","method":")" +
                       method + "\"";
    if (method != "RTN") {
      json += R"(,"blockAp":{"sampleCount":4,"sequenceLengthTokens":32,"epochCount":2})";
    }
    if (method == "BLOCK_AP_E2E_QP") {
      json += R"(,"e2eQp":{"sampleCount":4,"sequenceLengthTokens":32,"epochCount":2})";
    }
    return json + fields + "}";
  }

  std::unique_ptr<Subprocess> Start(
      const std::string& task, const std::string& work,
      const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    WriteAll(Path("task.json"), task);
    Subprocess::Options options;
    options.argv = launcher_;
    options.argv.insert(
        options.argv.end(),
        {std::string(getenv("QUERN_BIN_DIR")) + "/quern-quantizer", "--task", Path("task.json"),
         "--work-directory", Path(work), "--model-root", Path("models"), "--data-root",
         Path("data"), "--threads", "1", "--device", "cpu"});
    options.argv.insert(options.argv.end(), extra_flags_.begin(), extra_flags_.end());
    options.environment = environment;
    options.capture_output = true;
    auto process = Subprocess::Start(options);
    EXPECT_OK(process);
    return process.ok() ? *std::move(process) : nullptr;
  }

  // The next event, checked for its form; null at the end.
  static Json NextEvent(Subprocess& process) {
    const auto line = process.ReadLine(absl::Now() + kPatience);
    EXPECT_OK(line);
    if (!line.ok() || !line->has_value()) return nullptr;
    const auto event = ParseJson(**line, "event");
    EXPECT_OK(event) << **line;
    if (!event.ok()) return nullptr;
    EXPECT_TRUE(event->contains("event")) << **line;
    return *event;
  }

  struct Finished {
    std::vector<Json> events;
    ExitStatus exit;
    const Json& last() const { return events.back(); }
  };

  static Finished Finish(Subprocess& process) {
    Finished finished;
    for (Json event = NextEvent(process); !event.is_null(); event = NextEvent(process)) {
      finished.events.push_back(std::move(event));
    }
    const auto exit = process.Wait(absl::Now() + kPatience);
    EXPECT_OK(exit);
    if (exit.ok()) finished.exit = *exit;
    EXPECT_FALSE(finished.events.empty());
    if (finished.events.empty()) finished.events.push_back(Json::object());
    return finished;
  }

  Finished Run(const std::string& task, const std::string& work,
               const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    const std::unique_ptr<Subprocess> process = Start(task, work, environment);
    return process == nullptr ? Finished{.events = {Json::object()}} : Finish(*process);
  }

  // The bytes of an artifact's files by name.
  std::map<std::string, std::string> ArtifactOf(const std::string& work) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(Path(work + "/artifact"))) {
      files[entry.path().filename()] = ReadAll(entry.path());
    }
    return files;
  }

  // The task ends with an error event of this code and reason, exit code 1, and no artifact.
  void ExpectError(const std::string& task, absl::StatusCode code, const std::string& reason,
                   const std::string& message) {
    SCOPED_TRACE(task.substr(0, 300));
    std::filesystem::remove_all(Path("bad"));
    const Finished finished = Run(task, "bad");
    EXPECT_EQ(finished.exit.exit_code, 1);
    EXPECT_EQ(finished.last().value("event", ""), "error");
    EXPECT_EQ(finished.last().value("code", 0), static_cast<int>(code));
    EXPECT_EQ(finished.last().value("reason", ""), reason);
    EXPECT_THAT(finished.last().value("message", ""), testing::HasSubstr(message));
    EXPECT_FALSE(std::filesystem::exists(Path("bad/artifact")));
  }

  std::vector<std::string> launcher_;  // a program that ends by running its arguments
  std::vector<std::string> extra_flags_;
  std::string root_;
};

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_QUANTIZER_QUANTIZER_PROCESS_H_

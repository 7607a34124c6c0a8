// Commands that need no service: what they do runs in the program itself.

#include <filesystem>

#include "core/artifact/artifact.h"
#include "core/base/file.h"
#include "core/checkpoint/checkpoint.h"
#include "core/convert/export.h"
#include "tests/core/artifact/fixture.h"
#include "tests/services/cli/cli_fixture.h"
#include "tests/support/tiny_model.h"

namespace quern {
namespace {

using testing::HasSubstr;

class LocalCommandsTest : public CliTest {};

TEST_F(LocalCommandsTest, ImportMakesAnArtifactThatRunsHere) {
  const PackedModel model = TinyModel({.bits = 4, .group_size = 32}, EvenConfig());
  const std::string gptq = directory_.Path("gptq");
  ASSERT_OK(CreateDirectories(gptq));
  ASSERT_OK(ExportModel(model, ExportForm::kGptqV2, gptq));
  const std::string imported = directory_.Path("imported");
  const Result made = RunConnected({"artifacts", "import", gptq, imported});
  EXPECT_EQ(made.exit_code, 0) << made.error;
  EXPECT_THAT(made.output, HasSubstr("GPTQ v2, w4 g32"));
  ASSERT_OK_AND_ASSIGN(const LoadedArtifact artifact, LoadArtifact(imported));
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  EXPECT_EQ(Dequantize(artifact.model.matrices.at(name)), Dequantize(model.matrices.at(name)));
  const Json again = RunJson({"artifacts", "import", gptq, directory_.Path("again")});
  EXPECT_EQ(again.at("artifact"), artifact.id) << "the same bytes again";
  EXPECT_EQ(again.at("roundedScales"), 0);
  EXPECT_THAT(RunConnected({"artifacts", "import", gptq, imported}).error, HasSubstr("exists"));
  // What lies in a directory is exported without a service.
  const std::string dense = directory_.Path("dense");
  const Result exported =
      RunConnected({"artifacts", "export", imported, dense, "--as=huggingface"});
  EXPECT_EQ(exported.exit_code, 0) << exported.error;
  EXPECT_TRUE(std::filesystem::exists(dense + "/config.json"));
  EXPECT_THAT(RunConnected({"artifacts", "export", imported, directory_.Path("y")}).error,
              HasSubstr("is an artifact's directory already"));
  EXPECT_THAT(
      RunConnected({"artifacts", "export", imported, directory_.Path("y"), "--as=gguf"}).error,
      HasSubstr("tokenizer.json: model"));
  EXPECT_FALSE(std::filesystem::exists(directory_.Path("y")));
  const Result refused = RunConnected({"artifacts", "import", "/nowhere", directory_.Path("x")});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.error, HasSubstr("NOT_FOUND"));
  EXPECT_FALSE(std::filesystem::exists(directory_.Path("x")));
}

TEST_F(LocalCommandsTest, EvalAndBenchRunHere) {
  ASSERT_OK(WriteTinyCheckpoint(directory_.Path("tiny")));
  OverwriteFile(directory_.Path("text.txt"), std::string(4000, 'a') + " some other words");
  const Json eval =
      RunJson({"eval", directory_.Path("tiny"), "--source=" + directory_.Path("tiny"),
               "--text=" + directory_.Path("text.txt"), "--chunk-tokens=32", "--max-chunks=3"});
  ASSERT_EQ(eval.at("rows").size(), 2U);
  EXPECT_EQ(eval.at("rows").at(0).at("model"), "source");
  EXPECT_GT(eval.at("rows").at(1).at("perplexity"), 1.0);
  EXPECT_EQ(eval.at("rows").at(1).at("klDivergence"), 0.0);
  EXPECT_EQ(eval.at("rows").at(1).at("top1Agreement"), 1.0);
  EXPECT_EQ(eval.at("rows").at(0).at("tokenCount"), 3 * 31);
}

// Jobs leave their artifacts in directories of one name.
TEST_F(LocalCommandsTest, EvalTellsModelsOfOneNameApart) {
  const std::string first = directory_.Path("job1/artifact");
  const std::string second = directory_.Path("job2/artifact/");
  ASSERT_OK(WriteTinyCheckpoint(first));
  ASSERT_OK(WriteTinyCheckpoint(second));
  OverwriteFile(directory_.Path("text.txt"), std::string(400, 'a'));
  const Json eval =
      RunJson({"eval", first, second, "--source=" + first, "--text=" + directory_.Path("text.txt"),
               "--chunk-tokens=32", "--max-chunks=1"});
  ASSERT_EQ(eval.at("rows").size(), 3U);
  EXPECT_EQ(eval.at("rows").at(1).at("model"), "job1/artifact");
  EXPECT_EQ(eval.at("rows").at(2).at("model"), "job2/artifact");
}

TEST_F(LocalCommandsTest, EvalAnswersZeroShotTasks) {
  const std::string tiny = directory_.Path("tiny");
  ASSERT_OK(WriteTinyCheckpoint(tiny));
  const std::string piqa = directory_.Path("piqa.jsonl");
  OverwriteFile(piqa, R"({"query":"Question: a?","choices":["b","c"],"gold":0})"
                      "\n"
                      R"({"query":"Question: d?","choices":["e","f"],"gold":1})"
                      "\n");
  const Json eval = RunJson({"eval", tiny, "--source=" + tiny, "--tasks=" + piqa});
  EXPECT_EQ(eval.at("rows").size(), 0U);
  ASSERT_EQ(eval.at("tasks").size(), 2U);
  EXPECT_EQ(eval.at("tasks").at(1).at("task"), "piqa");
  EXPECT_EQ(eval.at("tasks").at(1).at("itemCount"), 2);
  EXPECT_EQ(eval.at("tasks").at(1).at("difference"), 0.0);
  EXPECT_TRUE(eval.at("tasks").at(1).contains("accuracyNorm"));
  EXPECT_EQ(RunJson({"eval", tiny, "--source=" + tiny, "--tasks=" + piqa, "--max-items=1"})
                .at("tasks")
                .at(0)
                .at("itemCount"),
            1);
  EXPECT_THAT(RunConnected({"eval", tiny, "--source=" + tiny, "--tasks=" + piqa}).output,
              HasSubstr("acc - source's"));
  EXPECT_THAT(RunConnected({"eval", tiny, "--source=" + tiny}).error,
              HasSubstr("--text or --tasks is wanted"));
  OverwriteFile(piqa, "{}");
  EXPECT_THAT(RunConnected({"eval", tiny, "--source=" + tiny, "--tasks=" + piqa}).error,
              HasSubstr("piqa, line 1"));
}

TEST_F(LocalCommandsTest, EvalMeasuresAModelAlone) {
  const std::string tiny = directory_.Path("tiny");
  ASSERT_OK(WriteTinyCheckpoint(tiny));
  OverwriteFile(directory_.Path("text.txt"), std::string(4000, 'a') + " some other words");
  const std::string piqa = directory_.Path("piqa.jsonl");
  OverwriteFile(piqa, R"({"query":"Question: a?","choices":["b","c"],"gold":0})"
                      "\n");
  std::vector<std::string> run = {"eval",
                                  tiny,
                                  "--text=" + directory_.Path("text.txt"),
                                  "--chunk-tokens=200",
                                  "--max-chunks=1",
                                  "--tasks=" + piqa};
  const Json alone = RunJson(run);
  EXPECT_THAT(RunConnected(run).output, testing::Not(HasSubstr("source")));
  run.push_back("--source=" + tiny);
  const Json compared = RunJson(run);
  ASSERT_EQ(alone.at("rows").size(), 1U);
  EXPECT_EQ(alone.at("rows").at(0).at("model"), "tiny");
  EXPECT_EQ(alone.at("rows").at(0).at("perplexity"), compared.at("rows").at(0).at("perplexity"));
  EXPECT_FALSE(alone.at("rows").at(0).contains("klDivergence"));
  ASSERT_EQ(alone.at("tasks").size(), 1U);
  EXPECT_EQ(alone.at("tasks").at(0).at("model"), "tiny");
  EXPECT_EQ(alone.at("tasks").at(0).at("accuracy"), compared.at("tasks").at(0).at("accuracy"));
  EXPECT_FALSE(alone.at("tasks").at(0).contains("difference"));
  EXPECT_THAT(RunConnected({"eval", tiny, tiny, "--tasks=" + piqa}).error,
              HasSubstr("--source is wanted"));
}

TEST_F(LocalCommandsTest, EvalMeasuresWhatTheKvCacheCosts) {
  ASSERT_OK(WriteTinyCheckpoint(directory_.Path("tiny")));
  OverwriteFile(directory_.Path("text.txt"), std::string(4000, 'a') + " some other words");
  std::vector<std::string> run = {"eval", directory_.Path("tiny"),
                                  "--text=" + directory_.Path("text.txt"), "--chunk-tokens=200",
                                  "--max-chunks=1"};
  run.push_back("--kv-cache=int4");
  const Json eval = RunJson(run);
  ASSERT_EQ(eval.at("rows").size(), 2U);
  EXPECT_GT(eval.at("rows").at(1).at("klDivergence"), 0.0);
  EXPECT_LT(eval.at("rows").at(1).at("klDivergence"), 0.1);
}

TEST_F(LocalCommandsTest, BenchModelRunsHereAndComparesWithAnEarlierRun) {
  ASSERT_OK(WriteTinyCheckpoint(directory_.Path("tiny")));
  const std::vector<std::string> run = {"bench",
                                        "model",
                                        directory_.Path("tiny"),
                                        "--prompt-tokens=16,40",
                                        "--sequences=1,3",
                                        "--output-tokens=8",
                                        "--repeat=1"};
  const Json bench = RunJson(run);
  ASSERT_EQ(bench.at("rows").size(), 4U);
  for (const Json& row : bench.at("rows")) {
    EXPECT_GT(row.at("prefillTokensPerSecond"), 0.0);
    EXPECT_GT(row.at("decodeTokensPerSecond"), 0.0);
  }
  EXPECT_EQ(bench.at("rows").at(3).at("sequences"), 3);
  EXPECT_EQ(bench.at("rows").at(3).at("promptTokens"), 40);

  OverwriteFile(directory_.Path("earlier.json"), bench.dump());
  std::vector<std::string> again = run;
  again.push_back("--compare=" + directory_.Path("earlier.json"));
  const Json compared = RunJson(again);
  for (const Json& row : compared.at("rows")) EXPECT_GT(row.at("againstEarlier"), 0.0);
  OverwriteFile(directory_.Path("earlier.json"), R"({"rows": [{"speed": 1}]})");
  EXPECT_THAT(Run(again).error, HasSubstr("decodeTokensPerSecond"));

  const Result too_long = Run({"bench", "model", directory_.Path("tiny"), "--prompt-tokens=300"});
  EXPECT_EQ(too_long.exit_code, 1);
  EXPECT_THAT(too_long.error, HasSubstr("--prompt-tokens"));
  EXPECT_EQ(Run({"bench", "model", "/no/such/model"}).exit_code, 1);
  EXPECT_THAT(Run({"bench", "model"}).error, HasSubstr("--shape"));
}

TEST_F(LocalCommandsTest, BenchSpeculationSaysWhatGuessesGain) {
  ASSERT_OK(WriteTinyCheckpoint(directory_.Path("tiny")));
  std::string text;
  for (int i = 0; i < 40; ++i) text += "Once upon a time there was a little girl. ";
  OverwriteFile(directory_.Path("text.txt"), text);
  const std::vector<std::string> run = {"bench",
                                        "speculation",
                                        directory_.Path("tiny"),
                                        "--text=" + directory_.Path("text.txt"),
                                        "--draft=" + directory_.Path("tiny"),
                                        "--guesses=2,7",
                                        "--sequences=1,2",
                                        "--prompt-tokens=20",
                                        "--output-tokens=40",
                                        "--repeat=1"};
  const Json bench = RunJson(run);
  ASSERT_EQ(bench.at("rows").size(), 10U);
  EXPECT_EQ(bench.at("rows").at(0).at("by"), "none");
  EXPECT_EQ(bench.at("rows").at(0).at("speedup"), 1.0);
  for (const Json& row : bench.at("rows")) EXPECT_GT(row.at("decodeTokensPerSecond"), 0.0);
  const Json& drafted = bench.at("rows").at(4);
  EXPECT_EQ(drafted.at("by"), directory_.Path("tiny"));
  EXPECT_EQ(drafted.at("guesses"), 2);
  EXPECT_EQ(drafted.at("sequences"), 1);
  EXPECT_EQ(drafted.at("rightShare"), 1.0) << "the draft is the model itself";

  EXPECT_THAT(Run({"bench", "speculation", directory_.Path("tiny"), "--sequences=64",
                   "--text=" + directory_.Path("text.txt")})
                  .error,
              HasSubstr("give a longer text"));
}

TEST_F(LocalCommandsTest, BenchModelTakesAShape) {
  const Json bench =
      RunJson({"bench", "model", "--shape=smollm2-135m", "--bits=2", "--embedding-bits=4",
               "--prompt-tokens=4", "--output-tokens=2", "--repeat=1"});
  EXPECT_EQ(bench.at("model"), "smollm2-135m");
  // 106 million weights of 2 bits, 28 million of 4, and their scales.
  EXPECT_GT(bench.at("weightBytes"), 40e6);
  EXPECT_LT(bench.at("weightBytes"), 60e6);
}

TEST_F(LocalCommandsTest, BenchMachineAndKernelsGiveRatesAndShares) {
  const Json machine = RunJson({"bench", "machine", "--memory-mib=4", "--repeat=1"});
  ASSERT_GE(machine.at("rows").size(), 2U);
  for (const Json& row : machine.at("rows")) EXPECT_GT(row.at("gbPerSecond"), 0.0);
  EXPECT_GT(machine.at("int8Gops"), 0.0);
  EXPECT_GT(machine.at("floatGflops"), 0.0);
  EXPECT_EQ(machine.at("rows").back().at("bytes"), 4 << 20);

  for (const char* filter : {"w3g64", "f16", "attention"}) {
    const Json kernels = RunJson({"bench", "kernels", "--memory-mib=1", "--repeat=1", "--rows=64",
                                  "--cols=256", std::string("--filter=") + filter});
    ASSERT_GE(kernels.at("rows").size(), 3U);
    for (const Json& row : kernels.at("rows")) {
      EXPECT_THAT(row.at("kernel").get<std::string>(), HasSubstr(filter));
      EXPECT_GT(row.at("operationsPerSecond"), 0.0);
      EXPECT_GT(row.at("shareOfLimit"), 0.0);
    }
  }
  EXPECT_EQ(RunJson({"bench", "machine", "--memory-mib=1", "--repeat=1", "--kernels=scalar"})
                .at("kernels"),
            "scalar");
  EXPECT_THAT(Run({"bench", "machine", "--kernels=mmx"}).error, HasSubstr("scalar"));
  EXPECT_THAT(Run({"bench", "kernels", "--filter=w5"}).error, HasSubstr("w2g64"));
}

}  // namespace
}  // namespace quern

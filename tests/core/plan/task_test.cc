#include "core/plan/task.h"

#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::HasSubstr;

// A task with `fields` added to what is required.
std::string With(const std::string& fields) {
  return R"({"checkpoint":{"path":"model"},"format":{"bits":4,"groupSize":64})" +
         (fields.empty() ? "" : "," + fields) + "}";
}

void ExpectRefused(const std::string& json, const std::string& message) {
  EXPECT_THAT(ParseTask(json), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
      << json.substr(0, 200);
}

TEST(ParseTaskTest, DefaultsAreTheProtos) {
  ASSERT_OK_AND_ASSIGN(const Task task, ParseTask(With("")));
  EXPECT_EQ(task.checkpoint_path, "model");
  EXPECT_EQ(task.format, (QuantFormat{.bits = 4, .group_size = 64, .embedding_bits = 8}));
  EXPECT_EQ(task.method, QuantMethod::kBlockApE2eQp);
  EXPECT_EQ(task.preset, Preset::kStandard);
  EXPECT_EQ(task.calibration_path, "");
  EXPECT_EQ(task.evaluation.chunk_tokens, 0);
  EXPECT_EQ(task.evaluation.max_chunk_count, 40);
  EXPECT_FALSE(task.block_ap.sample_count.has_value());
  EXPECT_FALSE(task.e2e_qp.loss.has_value());
  EXPECT_EQ(task.seed, 0u);
  // group_size is 0 in the proto: a whole output channel.
  ASSERT_OK_AND_ASSIGN(const Task channel,
                       ParseTask(R"({"checkpoint":{"path":"m"},"format":{"bits":2}})"));
  EXPECT_EQ(channel.format.group_size, 0);
}

TEST(ParseTaskTest, BothSpellingsStringsAndNulls) {
  ASSERT_OK_AND_ASSIGN(
      const Task task,
      ParseTask(
          With(R"("seed":"-1","method":"BLOCK_AP","preset":1,"calibration":{"path":"a/b.jsonl"},)"
               R"("blockAp":{"sampleCount":"16","sequence_length_tokens":512,"epochCount":null,)"
               R"("weightLearningRate":"3e-4","quantLearningRate":0,"start":"GPTQ",)"
               R"("target":2,"loss":"MEAN_SQUARES","round_scales":false},"e2eQp":null,)"
               R"("evaluation":{"path":"wiki.raw","chunkTokens":0,"max_chunk_count":7})")));
  EXPECT_EQ(task.seed, UINT64_MAX);
  EXPECT_EQ(task.method, QuantMethod::kBlockAp);
  EXPECT_EQ(task.preset, Preset::kQuick);
  EXPECT_EQ(task.calibration_path, "a/b.jsonl");
  EXPECT_EQ(task.block_ap.sample_count, 16);
  EXPECT_EQ(task.block_ap.sequence_length_tokens, 512);
  EXPECT_FALSE(task.block_ap.epoch_count.has_value());
  EXPECT_EQ(task.block_ap.weight_learning_rate, 3e-4);
  EXPECT_EQ(task.block_ap.quant_learning_rate, 0.0);
  EXPECT_EQ(task.block_ap.start, QuantStart::kGptq);
  EXPECT_EQ(task.block_ap.target, BlockTarget::kQuantizedStream);
  EXPECT_EQ(task.block_ap.loss, BlockLoss::kMeanSquares);
  EXPECT_EQ(task.block_ap.round_scales, false);
  EXPECT_EQ(task.evaluation.chunk_tokens, 0);
  EXPECT_EQ(task.evaluation.max_chunk_count, 7);
}

TEST(ParseTaskTest, WhatIsRequired) {
  ExpectRefused("", "task");
  ExpectRefused("null", "task is null");
  ExpectRefused("[]", "task wanted an object");
  ExpectRefused("{}", "checkpoint.path is missing");
  ExpectRefused(R"({"checkpoint":{"path":"m"}})", "format.bits is missing");
  ExpectRefused(R"({"checkpoint":{},"format":{"bits":4}})", "checkpoint.path is empty");
  ExpectRefused(With(R"("calibration":{})"), "calibration.path is empty");
  ExpectRefused(With(R"("evaluation":{})"), "evaluation.path is empty");
}

TEST(ParseTaskTest, UnknownAndDoubledFieldsAreNamed) {
  ExpectRefused(With(R"("speed":1)"), "speed is not a known field");
  ExpectRefused(With(R"("blockAp":{"epochs":1})"), "block_ap.epochs is not a known field");
  ExpectRefused(With(R"("blockAp":{},"block_ap":{})"), "block_ap is given twice, also as blockAp");
  ExpectRefused(With(R"("seed":1,"seed":2)"), "occurs twice");
  ExpectRefused(With(R"("resolved":{})"), "resolved is output only");
  ExpectRefused(With(R"("a\nb":1)"), "a\\nb is not a known field");
}

TEST(ParseTaskTest, TypesAndRanges) {
  ExpectRefused(With(R"("seed":1.5)"), "seed is 1.5, wanted an integer");
  ExpectRefused(With(R"("seed":"x")"), "seed is \"x\", wanted an integer");
  ExpectRefused(With(R"("seed":9223372036854775808)"), "seed is 9223372036854775808");
  ExpectRefused(With(R"("seed":18446744073709551616)"), "64 bits");
  ExpectRefused(With(R"("seed":true)"), "seed is true");
  ExpectRefused(With(R"("method":"HQQ")"), "method is \"HQQ\", wanted one of");
  ExpectRefused(With(R"("method":9)"), "method is 9");
  ExpectRefused(With(R"("preset":-1)"), "preset is -1");
  ExpectRefused(With(R"("blockAp":[])"), "block_ap wanted an object");
  ExpectRefused(With(R"("blockAp":{"sampleCount":0})"), "block_ap.sample_count is 0");
  ExpectRefused(With(R"("blockAp":{"sampleCount":65537})"), "wanted an integer in [1, 65536]");
  ExpectRefused(With(R"("blockAp":{"sequenceLengthTokens":7})"), "sequence_length_tokens is 7");
  ExpectRefused(With(R"("blockAp":{"epochCount":65})"), "epoch_count is 65");
  ExpectRefused(With(R"("blockAp":{"batchSize":0})"), "batch_size is 0");
  ExpectRefused(With(R"("blockAp":{"weightLearningRate":-1e-9})"), "weight_learning_rate");
  ExpectRefused(With(R"("blockAp":{"weightLearningRate":"NaN"})"), "weight_learning_rate");
  ExpectRefused(With(R"("blockAp":{"weightLearningRate":"Infinity"})"), "weight_learning_rate");
  ExpectRefused(With(R"("blockAp":{"weightLearningRate":1e400})"), "overflow");
  ExpectRefused(With(R"("e2eQp":{"loss":"MSE"})"), "e2e_qp.loss is \"MSE\"");
  ExpectRefused(With(R"("evaluation":{"path":"a.txt","chunkTokens":1})"), "chunk_tokens is 1");
  ExpectRefused(R"({"checkpoint":{"path":"m"},"format":{"bits":"four"}})", "format.bits");
  ExpectRefused(R"({"checkpoint":{"path":"m"},"format":{"bits":4,"symmetric":1}})",
                "format.symmetric is 1, wanted true or false");
  ExpectRefused(R"({"checkpoint":{"path":7},"format":{"bits":4}})", "checkpoint.path is 7");
  ExpectRefused(std::string(100'000, '['), "nested deeper");
}

TEST(ParseTaskTest, Paths) {
  for (const std::string path : {"/etc", "../m", "a/../../b", "a\\u0000b", "a\\nb"}) {
    ExpectRefused(R"({"checkpoint":{"path":")" + path + R"("},"format":{"bits":4}})",
                  "checkpoint.path is");
  }
  ExpectRefused(
      R"({"checkpoint":{"path":")" + std::string(5000, 'a') + R"("},"format":{"bits":4}})",
      "at most 4096 bytes");
  ExpectRefused(With(R"("calibration":{"path":"a.parquet"})"), "ends in .txt, .raw, .jsonl");
  ExpectRefused(With(R"("evaluation":{"path":"a.json"})"), "ends in .txt, .raw, .jsonl");
  // Odd names are just names.
  EXPECT_OK(ParseTask(With(R"("calibration":{"path":"a '\";--%n \u00e9..x.txt"})")));
  for (const char* digest : {"AAAA", "sha256:../../x", "zz"}) {
    ExpectRefused(R"({"checkpoint":{"path":"m","digest":")" + std::string(digest) +
                      R"("},"format":{"bits":4}})",
                  "checkpoint.digest");
  }
}

TEST(TaskDigestTest, OnlyWhatDecidesTheWeightsCounts) {
  ASSERT_OK_AND_ASSIGN(const Task task, ParseTask(With("")));
  Task other = task;
  other.checkpoint_path = "elsewhere";
  other.evaluation.path = "wiki.raw";
  other.preset = Preset::kQuick;
  EXPECT_EQ(TaskDigest(other), TaskDigest(task));
  EXPECT_NE(TaskToJson(other), TaskToJson(task));
  other = task;
  other.seed = 1;
  EXPECT_NE(TaskDigest(other), TaskDigest(task));
  other = task;
  other.format.bits = 3;
  EXPECT_NE(TaskDigest(other), TaskDigest(task));
  other = task;
  other.block_ap.epoch_count = 0;
  EXPECT_NE(TaskDigest(other), TaskDigest(task));
  // Round-to-nearest draws nothing.
  Task rtn = task;
  rtn.method = QuantMethod::kRtn;
  other = rtn;
  other.seed = 1;
  EXPECT_EQ(TaskDigest(other), TaskDigest(rtn));
}

}  // namespace
}  // namespace quern

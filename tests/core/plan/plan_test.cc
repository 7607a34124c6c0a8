#include "core/plan/plan.h"

#include <absl/strings/numbers.h>
#include <absl/strings/str_split.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/artifact/pack.h"
#include "core/model/tensor_names.h"
#include "core/plan/tune_task.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using testing::AllOf;
using testing::HasSubstr;

ModelConfig SmolLm2() {
  ModelConfig config;
  config.model_type = "llama";
  config.hidden_size = 576;
  config.intermediate_size = 1536;
  config.num_hidden_layers = 30;
  config.num_attention_heads = 9;
  config.num_key_value_heads = 3;
  config.head_dim = 64;
  config.vocab_size = 49152;
  config.max_position_embeddings = 8192;
  config.tie_word_embeddings = true;
  return config;
}

ModelConfig Llama7b() {
  ModelConfig config = SmolLm2();
  config.hidden_size = 4096;
  config.intermediate_size = 11008;
  config.num_hidden_layers = 32;
  config.num_attention_heads = 32;
  config.num_key_value_heads = 32;
  config.head_dim = 128;
  config.vocab_size = 32000;
  config.max_position_embeddings = 4096;
  config.tie_word_embeddings = false;
  return config;
}

Task QuickTask(int bits) {
  Task task{.checkpoint_path = "model", .preset = Preset::kQuick};
  task.format.bits = bits;
  return task;
}

TEST(PlanTest, EvaluationChunksFitTheContext) {
  ModelConfig config = SmolLm2();
  ASSERT_OK_AND_ASSIGN(const PlanResult wide, MakePlan(QuickTask(4), config, {}));
  EXPECT_EQ(wide.resolved.evaluation.chunk_tokens, 512);
  config.max_position_embeddings = 256;
  ASSERT_OK_AND_ASSIGN(const PlanResult narrow, MakePlan(QuickTask(4), config, {}));
  EXPECT_EQ(narrow.resolved.evaluation.chunk_tokens, 256);
}

TEST(PlanTest, QuickIsTheMeasuredRecipe) {
  const struct {
    int bits, e2e_samples;
    double e2e_rate;
  } recipes[] = {{4, 32, 1e-3}, {3, 32, 2.5e-3}, {2, 64, 4e-3}};
  for (const auto& recipe : recipes) {
    SCOPED_TRACE(recipe.bits);
    ASSERT_OK_AND_ASSIGN(const PlanResult plan, MakePlan(QuickTask(recipe.bits), SmolLm2(), {}));
    const BlockApSettings& block = plan.resolved.block_ap;
    EXPECT_EQ(block.start, QuantStart::kGptq);
    EXPECT_EQ(block.sample_count, 32);
    EXPECT_EQ(block.sequence_length_tokens, 512);
    EXPECT_EQ(block.epoch_count, 0);
    EXPECT_EQ(block.validation_sample_count, 0);
    const E2eQpSettings& e2e = plan.resolved.e2e_qp;
    EXPECT_EQ(e2e.first_sample, 32);
    EXPECT_EQ(e2e.sample_count, recipe.e2e_samples);
    EXPECT_EQ(e2e.sequence_length_tokens, 512);
    EXPECT_EQ(e2e.batch_size, 1);
    EXPECT_DOUBLE_EQ(*e2e.learning_rate, recipe.e2e_rate);
    EXPECT_EQ(e2e.loss, E2eLoss::kDistillation);
    EXPECT_EQ(e2e.trainable, E2eTrainable::kScalesAndNorms);
    const CalibrationShape shape = CalibrationShapeOf(plan.resolved);
    EXPECT_EQ(shape.num_sequences, 32 + recipe.e2e_samples);
    EXPECT_EQ(shape.length_tokens, 512);
  }
}

// As recipes of Block-AP were measured: asked for by its epochs, or by the method without E2E-QP.
TEST(PlanTest, QuickTrainsWeightsWhenAsked) {
  const struct {
    int bits, samples;
    double weight, scale;
  } recipes[] = {{4, 16, 3e-4, 5e-4}, {3, 16, 7e-4, 1e-3}, {2, 32, 1.5e-3, 2.5e-3}};
  for (const auto& recipe : recipes) {
    for (const QuantMethod method : {QuantMethod::kBlockAp, QuantMethod::kBlockApE2eQp}) {
      SCOPED_TRACE(recipe.bits);
      Task task = QuickTask(recipe.bits);
      task.method = method;
      if (method == QuantMethod::kBlockApE2eQp) task.block_ap.epoch_count = 1;
      ASSERT_OK_AND_ASSIGN(const PlanResult plan, MakePlan(task, SmolLm2(), {}));
      const BlockApSettings& block = plan.resolved.block_ap;
      EXPECT_EQ(block.start, QuantStart::kSearch);
      EXPECT_EQ(block.sample_count, recipe.samples);
      EXPECT_EQ(block.epoch_count, 1);
      EXPECT_EQ(block.batch_size, 1);
      EXPECT_DOUBLE_EQ(*block.weight_learning_rate, recipe.weight);
      EXPECT_DOUBLE_EQ(*block.quant_learning_rate, recipe.scale);
      EXPECT_EQ(block.zero_point_learning_rate, 0.0);
      if (method == QuantMethod::kBlockAp) continue;
      EXPECT_EQ(plan.resolved.e2e_qp.trainable, E2eTrainable::kScales);
      EXPECT_EQ(plan.resolved.e2e_qp.first_sample, 0);
    }
  }
}

TEST(PlanTest, ResolvingIsIdempotent) {
  for (const Preset preset : {Preset::kQuick, Preset::kStandard, Preset::kBest}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const ModelConfig& config : {SmolLm2(), Llama7b()}) {
        Task task = QuickTask(bits);
        task.preset = preset;
        ASSERT_OK_AND_ASSIGN(const PlanResult once, MakePlan(task, config, {}));
        ASSERT_OK_AND_ASSIGN(const PlanResult twice, MakePlan(once.resolved, config, {}));
        EXPECT_EQ(TaskToJson(once.resolved), TaskToJson(twice.resolved));
        EXPECT_EQ(TaskDigest(once.resolved), TaskDigest(twice.resolved));
        const Json settings = TaskToJson(once.resolved);
        for (const char* part : {"block_ap", "e2e_qp"}) {
          for (const auto& [key, value] : settings[part].items()) {
            EXPECT_FALSE(value.is_null()) << part << "." << key;
          }
        }
      }
    }
  }
}

TEST(PlanTest, MoreDataMeansSmallerRatesAndMoreTime) {
  absl::Duration last;
  double last_rate = 1;
  for (const Preset preset : {Preset::kQuick, Preset::kStandard, Preset::kBest}) {
    Task task = QuickTask(2);
    task.preset = preset;
    ASSERT_OK_AND_ASSIGN(const PlanResult plan, MakePlan(task, SmolLm2(), {}));
    absl::Duration total;
    for (const StageCost& stage : plan.stages) total += stage.duration;
    EXPECT_GT(total, last);
    EXPECT_LE(*plan.resolved.e2e_qp.learning_rate, last_rate);
    last = total;
    last_rate = *plan.resolved.e2e_qp.learning_rate;
  }
  Task task = QuickTask(2);
  task.e2e_qp.sample_count = 4096;
  ASSERT_OK_AND_ASSIGN(const PlanResult plan, MakePlan(task, SmolLm2(), {}));
  EXPECT_LT(*plan.resolved.e2e_qp.learning_rate, last_rate);
}

TEST(PlanTest, OverridesStayAndTheRestFits) {
  Task task = QuickTask(4);
  task.preset = Preset::kStandard;
  task.block_ap.sample_count = 5;
  task.block_ap.weight_learning_rate = 0.5;
  task.e2e_qp.loss = E2eLoss::kCrossEntropy;
  ModelConfig config = SmolLm2();
  config.max_position_embeddings = 100;
  ASSERT_OK_AND_ASSIGN(const PlanResult plan, MakePlan(task, config, {}));
  EXPECT_EQ(plan.resolved.block_ap.sample_count, 5);
  EXPECT_EQ(plan.resolved.block_ap.weight_learning_rate, 0.5);
  EXPECT_EQ(plan.resolved.block_ap.sequence_length_tokens, 100);
  EXPECT_EQ(plan.resolved.e2e_qp.sequence_length_tokens, 100);
  EXPECT_EQ(plan.resolved.e2e_qp.loss, E2eLoss::kCrossEntropy);
}

TEST(PlanTest, StagesFollowTheMethod) {
  const auto names = [](QuantMethod method) {
    Task task = QuickTask(4);
    task.method = method;
    std::string text;
    const auto plan = MakePlan(task, SmolLm2(), {});
    EXPECT_OK(plan);
    for (const StageCost& cost : plan->stages) {
      text += std::string(StageName(cost.stage)) + " ";
      EXPECT_GT(cost.duration, absl::ZeroDuration());
      EXPECT_GT(cost.host_memory_bytes, 0);
    }
    return text;
  };
  EXPECT_EQ(names(QuantMethod::kRtn), "LOADING PACKING EVALUATING PUBLISHING ");
  EXPECT_EQ(names(QuantMethod::kGptq),
            "LOADING CALIBRATING BLOCK_AP PACKING EVALUATING PUBLISHING ");
  EXPECT_EQ(names(QuantMethod::kAwq),
            "LOADING CALIBRATING BLOCK_AP PACKING EVALUATING PUBLISHING ");
  EXPECT_EQ(names(QuantMethod::kBlockAp),
            "LOADING CALIBRATING BLOCK_AP PACKING EVALUATING PUBLISHING ");
  EXPECT_EQ(names(QuantMethod::kBlockApE2eQp),
            "LOADING CALIBRATING BLOCK_AP E2E_QP PACKING EVALUATING PUBLISHING ");
}

TEST(PlanTest, TheReferencePresetIsThePublishedRecipe) {
  Task task = QuickTask(2);
  task.preset = Preset::kReference;
  const auto plan = MakePlan(task, SmolLm2(), {});
  ASSERT_OK(plan);
  const BlockApSettings& block = plan->resolved.block_ap;
  EXPECT_EQ(*block.sample_count * *block.epoch_count / *block.batch_size, 4096);
  EXPECT_EQ(block.sequence_length_tokens, 2048);
  EXPECT_EQ(block.weight_learning_rate, 2e-5);
  EXPECT_EQ(block.quant_learning_rate, 1e-4);
  EXPECT_EQ(block.zero_point_learning_rate, 1e-4);
  EXPECT_EQ(block.validation_sample_count, 64);
  EXPECT_EQ(block.start, QuantStart::kMinMax);
  EXPECT_EQ(block.target, BlockTarget::kSourceStream);
  EXPECT_EQ(block.loss, BlockLoss::kMeanSquares);
  EXPECT_EQ(block.round_scales, false);
  const E2eQpSettings& e2e = plan->resolved.e2e_qp;
  EXPECT_EQ(*e2e.sample_count / *e2e.batch_size, 128);
  EXPECT_EQ(e2e.loss, E2eLoss::kCrossEntropy);
  EXPECT_EQ(e2e.learning_rate, 2e-5);
  EXPECT_EQ(e2e.absolute_rate, true);
  task.format.bits = 4;
  EXPECT_EQ(MakePlan(task, SmolLm2(), {})->resolved.e2e_qp.learning_rate, 1e-5);
  task.e2e_qp.trainable = E2eTrainable::kScalesAndNorms;
  EXPECT_THAT(MakePlan(task, SmolLm2(), {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("absolute_rate")));
}

// A stream of states that has no room in memory counts as disk, and as time to read and write it.
TEST(PlanTest, StatesBeyondTheirMemoryAreOnTheDisk) {
  Task task = QuickTask(4);
  task.method = QuantMethod::kBlockAp;
  task.block_ap.sample_count = 4096;
  task.block_ap.sequence_length_tokens = 1024;
  const auto block_ap = [&](const Machine& machine) {
    const auto plan = MakePlan(task, SmolLm2(), machine);
    EXPECT_OK(plan);
    return plan->stages[2];
  };
  constexpr int64_t kStream = int64_t{4096} * 1024 * 576 * 4;
  const StageCost kept = block_ap({});
  const StageCost half = block_ap({.activation_memory_bytes = kStream});
  const StageCost none = block_ap({.activation_memory_bytes = 1});
  EXPECT_EQ(kept.host_memory_bytes - half.host_memory_bytes, kStream);
  EXPECT_EQ(half.disk_bytes - kept.disk_bytes, kStream);
  EXPECT_EQ(kept.host_memory_bytes - none.host_memory_bytes, 2 * kStream);
  EXPECT_EQ(none.disk_bytes - kept.disk_bytes, 2 * kStream);
  EXPECT_LT(kept.duration, half.duration);
  EXPECT_LT(half.duration, none.duration);
  task.activation_dtype = ComputeDtype::kBfloat16;
  EXPECT_EQ(none.disk_bytes - block_ap({.activation_memory_bytes = 1}).disk_bytes, kStream);
}

// What training takes is the GPU's; the checkpoint stays with the host.
TEST(PlanTest, MemoryOfAGpuIsPlannedApart) {
  Task task = QuickTask(4);
  const auto on_host = MakePlan(task, SmolLm2(), {});
  const auto on_gpu = MakePlan(task, SmolLm2(), {.device_memory_bytes = int64_t{80} << 30});
  ASSERT_OK(on_host);
  ASSERT_OK(on_gpu);
  for (size_t i = 0; i < on_host->stages.size(); ++i) {
    const StageCost& host = on_host->stages[i];
    const StageCost& gpu = on_gpu->stages[i];
    EXPECT_EQ(host.device_memory_bytes, 0);
    if (host.stage == Stage::kBlockAp || host.stage == Stage::kE2eQp) {
      EXPECT_GT(gpu.device_memory_bytes, 0);
      EXPECT_LT(gpu.host_memory_bytes, host.host_memory_bytes);
    } else {
      EXPECT_EQ(gpu.device_memory_bytes, 0);
      EXPECT_EQ(gpu.host_memory_bytes, host.host_memory_bytes);
    }
  }
  EXPECT_THAT(MakePlan(task, SmolLm2(), {.device_memory_bytes = int64_t{7} << 28}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("GiB of GPU memory, the GPU has 1.8 GiB"),
                             HasSubstr("it fits with"))));
}

TEST(PlanTest, ADiskWithoutRoomIsSaidWithBothNumbers) {
  const std::vector<StageCost> stages = {
      {.stage = Stage::kLoading},
      {.stage = Stage::kBlockAp, .disk_bytes = int64_t{3} << 30},
  };
  EXPECT_OK(CheckDisk(stages, int64_t{3} << 30));
  EXPECT_THAT(CheckDisk(stages, int64_t{1} << 29),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("BLOCK_AP needs 3.0 GiB of disk, the work directory's has 0.5")));
}

TEST(PlanTest, ChoosingBitsTakesTimeAndMemory) {
  Task task = QuickTask(2);
  task.method = QuantMethod::kGptq;
  const auto cost = [&] {
    const auto plan = MakePlan(task, SmolLm2(), {});
    EXPECT_OK(plan);
    return plan->stages[2];
  };
  const StageCost alike = cost();
  ASSERT_EQ(alike.stage, Stage::kBlockAp);
  task.target_bits = 2.25;
  const StageCost mixed = cost();
  EXPECT_GT(mixed.duration, alike.duration + absl::Seconds(10));
  // The states of 4,096 tokens before, between and after 30 blocks alone.
  EXPECT_GT(mixed.host_memory_bytes, int64_t{4096} * 576 * 4 * 31);
  EXPECT_GE(mixed.host_memory_bytes, alike.host_memory_bytes);
}

TEST(PlanTest, BestOfATinyModelTrainsItsWeights) {
  ModelConfig tiny = SmolLm2();
  tiny.hidden_size = 64;
  tiny.intermediate_size = 172;
  tiny.num_attention_heads = 8;
  tiny.num_key_value_heads = 4;
  tiny.head_dim = 8;
  tiny.num_hidden_layers = 5;
  tiny.vocab_size = 512;
  Task task = QuickTask(2);
  task.preset = Preset::kBest;
  const auto plan = MakePlan(task, tiny, {});
  ASSERT_OK(plan);
  EXPECT_EQ(plan->resolved.block_ap.epoch_count, 4);
  EXPECT_EQ(plan->resolved.block_ap.start, QuantStart::kSearch);
  EXPECT_EQ(plan->resolved.e2e_qp.trainable, E2eTrainable::kAll);
  EXPECT_EQ(plan->resolved.e2e_qp.weight_learning_rate, 0.02);
  // What is set stays, and what cannot be trained for that is not.
  task.e2e_qp.trainable = E2eTrainable::kScales;
  const auto scales = MakePlan(task, tiny, {});
  ASSERT_OK(scales);
  EXPECT_EQ(scales->resolved.e2e_qp.trainable, E2eTrainable::kScales);
  const auto other = MakePlan(task, SmolLm2(), {});
  ASSERT_OK(other);
  EXPECT_EQ(other->resolved.block_ap.epoch_count, 0);
}

TEST(PlanTest, ProductsAreOfBfloat16WhereTheMachineHasThem) {
  const auto dtype = [](const Task& task, const Machine& machine) {
    const auto plan = MakePlan(task, SmolLm2(), machine);
    EXPECT_OK(plan);
    return plan->resolved.compute_dtype;
  };
  const Machine floats{.gflops = 200};
  const Machine both{.gflops = 200, .bfloat16_gflops = 400};
  Task task = QuickTask(2);
  EXPECT_EQ(dtype(task, floats), ComputeDtype::kFloat32);
  EXPECT_EQ(dtype(task, both), ComputeDtype::kBfloat16);
  task.compute_dtype = ComputeDtype::kFloat32;
  EXPECT_EQ(dtype(task, both), ComputeDtype::kFloat32);
  task.compute_dtype = ComputeDtype::kBfloat16;
  EXPECT_EQ(dtype(task, floats), ComputeDtype::kBfloat16);
  task.compute_dtype.reset();
  task.preset = Preset::kReference;
  EXPECT_EQ(dtype(task, both), ComputeDtype::kFloat32);

  const auto seconds = [](const Machine& machine) {
    const auto plan = MakePlan(QuickTask(2), SmolLm2(), machine);
    EXPECT_OK(plan);
    for (const StageCost& cost : plan->stages) {
      if (cost.stage == Stage::kE2eQp) return absl::ToDoubleSeconds(cost.duration);
    }
    return 0.0;
  };
  EXPECT_LT(seconds(both), 0.7 * seconds(floats));
  EXPECT_GT(seconds(both), 0.5 * seconds(floats)) << "not all of a step is products";

  Task rounded = QuickTask(2);
  rounded.method = QuantMethod::kRtn;
  rounded.compute_dtype = ComputeDtype::kFloat32;
  EXPECT_THAT(MakePlan(rounded, SmolLm2(), both),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("compute_dtype")));
}

// Measured with another program, weights trained, on the machine whose rate is the default: 124 s
// and 90 s (4 bits), 236 s and 177 s (2 bits).
TEST(PlanTest, TimesAreNearTheMeasuredOnes) {
  const auto seconds = [](int bits, Stage stage) {
    Task task = QuickTask(bits);
    task.block_ap.epoch_count = 1;
    const auto plan = MakePlan(task, SmolLm2(), {});
    EXPECT_OK(plan);
    for (const StageCost& cost : plan->stages) {
      if (cost.stage == stage) return absl::ToDoubleSeconds(cost.duration);
    }
    return 0.0;
  };
  EXPECT_NEAR(seconds(4, Stage::kBlockAp), 124, 40);
  EXPECT_NEAR(seconds(2, Stage::kBlockAp), 236, 80);
  EXPECT_NEAR(seconds(4, Stage::kE2eQp), 90, 30);
  EXPECT_NEAR(seconds(2, Stage::kE2eQp), 177, 60);
}

TEST(PlanTest, TrainingWeightsEndToEndTakesTheirMemory) {
  const auto cost = [](E2eTrainable trainable) {
    Task task = QuickTask(4);
    task.e2e_qp.trainable = trainable;
    const auto plan = MakePlan(task, SmolLm2(), {});
    EXPECT_OK(plan);
    return plan->stages[3];
  };
  const StageCost scales = cost(E2eTrainable::kScales);
  const StageCost all = cost(E2eTrainable::kAll);
  ASSERT_EQ(all.stage, Stage::kE2eQp);
  // 106 million weights: value, gradient, two moments and the fake-quantized copy.
  EXPECT_NEAR(static_cast<double>(all.host_memory_bytes - scales.host_memory_bytes), 20 * 106e6,
              20e6);
  EXPECT_GT(all.disk_bytes, 2 * 12 * int64_t{106'000'000});
  EXPECT_GT(all.duration, scales.duration);
}

TEST(PlanTest, AWeightRateNeedsWeightsThatAreTrained) {
  Task task = QuickTask(4);
  task.e2e_qp.weight_learning_rate = 0.01;
  EXPECT_THAT(MakePlan(task, SmolLm2(), {}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("e2e_qp.weight_learning_rate is 0.01, but weights are not")));
  task.e2e_qp.trainable = E2eTrainable::kAll;
  EXPECT_OK(MakePlan(task, SmolLm2(), {}));
}

TEST(PlanTest, WeightsOfTheArtifactAreCountedExactly) {
  for (const QuantFormat& format :
       {QuantFormat{.bits = 2, .group_size = 64, .symmetric = true},
        QuantFormat{.bits = 3, .group_size = 128},
        QuantFormat{.bits = 4, .group_size = 0, .embedding_bits = 16}}) {
    ModelConfig config = SmolLm2();
    config.num_hidden_layers = 1;
    config.vocab_size = 33;
    PackedModel model{.config = config, .format = format};
    for (const TensorSpec& spec : ModelTensors(config)) {
      if (spec.kind == TensorSpec::Kind::kVector) {
        model.vectors[spec.name].resize(spec.shape[0]);
        continue;
      }
      const int rows = static_cast<int>(spec.shape[0]);
      const int cols = static_cast<int>(spec.shape[1]);
      const auto matrix = FormatOf(format, spec.kind, cols);
      if (matrix.has_value()) {
        ASSERT_OK_AND_ASSIGN(
            model.matrices[spec.name],
            RoundToNearest(std::vector<float>(static_cast<size_t>(rows) * cols), rows, cols,
                           matrix->bits, matrix->group_size, matrix->symmetric));
      } else {
        model.half_matrices[spec.name] = HalfTensor{.rows = rows, .cols = cols};
      }
    }
    Task task = QuickTask(4);
    task.format = format;
    ASSERT_OK_AND_ASSIGN(const PlanResult plan, MakePlan(task, config, {}));
    // Beside the weights: headers, manifest, tokenizer; a few kilobytes for this vocabulary.
    EXPECT_GT(plan.artifact_size_bytes, model.weight_bytes());
    EXPECT_LT(plan.artifact_size_bytes, model.weight_bytes() + 16'000);
  }
}

void ExpectRefused(const Task& task, const std::string& message,
                   const ModelConfig& config = SmolLm2()) {
  EXPECT_THAT(MakePlan(task, config, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
}

TEST(PlanTest, WhatCannotRunIsRefusedByField) {
  Task task = QuickTask(5);
  ExpectRefused(task, "format.bits is 5");
  task = QuickTask(4);
  task.format.group_size = 48;
  ExpectRefused(task, "format.group_size is 48");
  task = QuickTask(4);
  task.format.embedding_bits = 2;
  ExpectRefused(task, "format.embedding_bits is 2");
  task = QuickTask(4);
  task.block_ap.sequence_length_tokens = 8193;
  ExpectRefused(task, "block_ap.sequence_length_tokens is 8193, the model's context is 8192");
  task = QuickTask(4);
  task.e2e_qp.sequence_length_tokens = 8193;
  ExpectRefused(task, "e2e_qp.sequence_length_tokens is 8193");
  task = QuickTask(4);
  task.evaluation.path = "wiki.raw";
  task.evaluation.chunk_tokens = 8193;
  ExpectRefused(task, "evaluation.chunk_tokens is 8193");
  task = QuickTask(4);
  task.block_ap.batch_size = 3;
  ExpectRefused(task, "block_ap.batch_size is 3, wanted a divisor");
  task = QuickTask(4);
  task.e2e_qp.batch_size = 24;
  ExpectRefused(task, "e2e_qp.batch_size is 24, wanted a divisor");
  task = QuickTask(2);
  task.format.symmetric = true;
  task.block_ap.zero_point_learning_rate = 1e-3;
  ExpectRefused(task, "zero_point_learning_rate is 0.001, but a symmetric format");
  task = QuickTask(4);
  task.method = QuantMethod::kRtn;
  task.block_ap.epoch_count = 1;
  ExpectRefused(task, "block_ap is set, but method RTN does not use it");
  task = QuickTask(4);
  task.method = QuantMethod::kRtn;
  task.calibration_path = "a.txt";
  ExpectRefused(task, "calibration is set, but method RTN");
  task.method = QuantMethod::kBlockApE2eQp;
  const auto sequences = MakePlan(task, SmolLm2(), {});
  ASSERT_OK(sequences);
  const CalibrationShape shape = CalibrationShapeOf(sequences->resolved);
  EXPECT_EQ(shape.num_sampled, 0);
  task.calibration_sampled_count = shape.num_sequences - shape.num_block_sequences;
  EXPECT_OK(MakePlan(task, SmolLm2(), {}));
  ++task.calibration_sampled_count;
  ExpectRefused(task, "Block-AP takes 32 of the text; wanted at most 32");
  task = QuickTask(4);
  task.target_bits = 4;
  ExpectRefused(task, "target_bits is 4, wanted 0 or more than format.bits, which is 4");
  task.target_bits = 5;
  const auto mixed = MakePlan(task, SmolLm2(), {});
  ASSERT_OK(mixed);
  EXPECT_NEAR(mixed->artifact_size_bytes,
              MakePlan(QuickTask(4), SmolLm2(), {})->artifact_size_bytes + 106'168'320 / 8, 1e6);
  task = QuickTask(4);
  task.method = QuantMethod::kBlockAp;
  task.e2e_qp.loss = E2eLoss::kCrossEntropy;
  ExpectRefused(task, "e2e_qp is set, but method BLOCK_AP");
  task = QuickTask(4);
  task.e2e_qp.cross_entropy_share = 0.25;
  EXPECT_OK(MakePlan(task, SmolLm2(), {}));
  task.e2e_qp.loss = E2eLoss::kCrossEntropy;
  ExpectRefused(task, "e2e_qp.cross_entropy_share is 0.25, wanted loss DISTILLATION with it");
  task = QuickTask(4);
  task.method = QuantMethod::kGptq;
  task.block_ap.sample_count = 8;
  EXPECT_OK(MakePlan(task, SmolLm2(), {}));
  task.block_ap.start = QuantStart::kSearch;
  ExpectRefused(task, "beside sample_count and sequence_length_tokens");
  ModelConfig config = SmolLm2();
  config.num_key_value_heads = 2;
  ExpectRefused(QuickTask(4), "num_key_value_heads", config);
}

TEST(PlanTest, MemoryThatDoesNotSufficeIsRefusedWithNumbers) {
  ASSERT_OK(MakePlan(QuickTask(4), SmolLm2(), {.memory_bytes = int64_t{8} << 30}));
  EXPECT_THAT(MakePlan(QuickTask(4), SmolLm2(), {.memory_bytes = int64_t{1} << 30}),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("the machine has 1.0 GiB")));
  Task task = QuickTask(2);
  task.preset = Preset::kBest;
  EXPECT_THAT(MakePlan(task, Llama7b(), {.memory_bytes = int64_t{24} << 30}),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("stage BLOCK_AP needs")));
  EXPECT_OK(MakePlan(task, Llama7b(), {.memory_bytes = 0}));
}

TEST(PlanTest, WhatDoesNotFitSaysWhatWould) {
  Task task = QuickTask(2);
  task.preset = Preset::kBest;
  task.e2e_qp.sample_count = 4096;
  const Machine machine{.memory_bytes = int64_t{4} << 30};
  const std::string message(MakePlan(task, SmolLm2(), machine).status().message());
  EXPECT_THAT(message, HasSubstr("; it fits with e2e_qp.sample_count "));
  // As it says.
  std::vector<std::string> words = absl::StrSplit(message, ' ');
  const auto name = std::find(words.begin(), words.end(), "e2e_qp.sample_count");
  ASSERT_LT(name + 1, words.end());
  int count = 0;
  ASSERT_TRUE(absl::SimpleAtoi(*(name + 1), &count)) << message;
  task.e2e_qp.sample_count = count;
  EXPECT_OK(MakePlan(task, SmolLm2(), machine));
  // Where the checkpoint alone is too large there is no such setting.
  EXPECT_THAT(MakePlan(task, Llama7b(), machine),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("no setting makes it fit, use a larger machine")));
}

TEST(PlanTest, TuningCountsWhatThereIsToLearnFrom) {
  TuneTask task{.base = std::string(64, 'a'), .data_path = "chat.jsonl"};
  const QuantFormat format{.bits = 4, .group_size = 64};
  const auto training = [&](int64_t num_tokens) {
    const auto plan = PlanTune(task, SmolLm2(), format, {}, num_tokens);
    EXPECT_OK(plan);
    for (const StageCost& stage : plan->stages) {
      if (stage.stage == Stage::kE2eQp) return absl::ToDoubleSeconds(stage.duration);
    }
    return 0.0;
  };
  const double all = training(int64_t{1} << 40);
  EXPECT_NEAR(training(1024 * 1024), all, 1e-6) << "1024 examples of 1024 tokens";
  EXPECT_NEAR(training(1024 * 256), all / 4, 1e-6);
  // Scales of 106 million weights in groups of 64, two bytes each, a header.
  ASSERT_OK_AND_ASSIGN(const TunePlan plan, PlanTune(task, SmolLm2(), format, {}, 1000));
  EXPECT_NEAR(static_cast<double>(plan.artifact_size_bytes), 3.34e6, 0.1e6);
  task.settings.sequence_length_tokens = SmolLm2().max_position_embeddings + 1;
  EXPECT_THAT(PlanTune(task, SmolLm2(), format, {}, 1000),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("settings.sequence_length_tokens is")));
}

}  // namespace
}  // namespace quern

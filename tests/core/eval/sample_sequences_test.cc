#include <set>

#include "core/eval/evaluate.h"
#include "tests/core/engine/engine_test_util.h"

namespace quern {
namespace {

TEST(SampleSequencesTest, SequencesHaveTheirLengthStartAndSeed) {
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({.kv_cache_bytes = 8 << 20}));
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(TinySource({})));
  int64_t last_done = 0;
  ASSERT_OK_AND_ASSIGN(const auto sequences,
                       SampleSequences(*engine, model, 9, 60, 5, [&](int64_t done, int64_t total) {
                         EXPECT_EQ(total, 9 * 59);
                         EXPECT_GT(done, last_done);
                         last_done = done;
                       }));
  EXPECT_EQ(last_done, 9 * 59);
  ASSERT_EQ(sequences.size(), 9u);
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_EQ(sequences[i].size(), 60u);
    EXPECT_EQ(sequences[i][0], i < 5 ? kTinyEndOfText : kTinyImEnd);
  }
  EXPECT_EQ(std::set(sequences.begin(), sequences.end()).size(), 9u);
  ASSERT_OK_AND_ASSIGN(const auto again, SampleSequences(*engine, model, 9, 60, 5));
  EXPECT_EQ(again, sequences);
  ASSERT_OK_AND_ASSIGN(const auto other, SampleSequences(*engine, model, 9, 60, 6));
  EXPECT_NE(other, sequences);
}

TEST(SampleSequencesTest, MoreSequencesThanTheQueueHoldsAreAllSampled) {
  ASSERT_OK_AND_ASSIGN(
      const auto engine,
      Engine::Create({.kv_cache_bytes = 8 << 20, .max_sequences = 3, .max_queued_requests = 2}));
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(TinySource({})));
  ASSERT_OK_AND_ASSIGN(const auto sequences, SampleSequences(*engine, model, 40, 10, 5));
  EXPECT_EQ(sequences.size(), 40u);
  for (const auto& sequence : sequences) EXPECT_EQ(sequence.size(), 10u);
}

TEST(SampleSequencesTest, ErrorsEndIt) {
  ASSERT_OK_AND_ASSIGN(const auto engine, Engine::Create({.kv_cache_bytes = 8 << 20}));
  ASSERT_OK_AND_ASSIGN(const ModelHandle model, engine->Load(TinySource({})));
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(SampleSequences(*engine, model, 0, 10, 5), StatusIs(invalid, testing::_));
  EXPECT_THAT(SampleSequences(*engine, model, 1, 1, 5), StatusIs(invalid, testing::_));
  EXPECT_THAT(SampleSequences(*engine, model, 1, 257, 5), StatusIs(invalid, testing::_));
  EXPECT_THAT(SampleSequences(*engine, model + 1, 1, 10, 5),
              StatusIs(absl::StatusCode::kNotFound, testing::_));
  TinySource source({});
  for (float& value : source.weights[std::string(kFinalNormName)].values) value = 3e38f;
  ASSERT_OK_AND_ASSIGN(const ModelHandle broken, engine->Load(source));
  EXPECT_THAT(SampleSequences(*engine, broken, 5, 10, 5),
              StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("not finite")));
  EXPECT_THAT(Evaluate(*engine, broken, {}, {{"text", {Prompt(9, 1)}}}),
              StatusIs(absl::StatusCode::kInternal, testing::HasSubstr("not finite")));
  engine->Drain(absl::ZeroDuration());
  EXPECT_THAT(SampleSequences(*engine, model, 1, 10, 5),
              StatusIs(absl::StatusCode::kUnavailable, testing::_));
}

}  // namespace
}  // namespace quern

#include "core/engine/speculation.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"

namespace quern {
namespace {

// Tokens that must agree for what followed them to be a guess: the more the better it is.
constexpr int kLongestMatch = 4;
constexpr int kShortestMatch = 2;

// Where the tokens begin that followed the latest earlier occurrence of the last ones; the number
// of tokens when there is none.
size_t FindContinuation(absl::Span<const int32_t> tokens) {
  const size_t size = tokens.size();
  size_t best = size;
  int longest = kShortestMatch - 1;
  for (size_t end = size - 1; end > 0 && longest < kLongestMatch; --end) {
    int match = 0;
    while (match < kLongestMatch && static_cast<size_t>(match) < end &&
           tokens[end - 1 - match] == tokens[size - 1 - match]) {
      ++match;
    }
    if (match > longest) {
      longest = match;
      best = end;
    }
  }
  return best;
}

class NgramDrafter final : public Drafter {
 public:
  void Draft(absl::Span<Sequence* const> sequences) override {
    for (Sequence* sequence : sequences) {
      const std::vector<int32_t>& tokens = sequence->tokens;
      const size_t begin = FindContinuation(tokens);
      if (begin == tokens.size()) continue;
      for (int i = 0; i < sequence->max_guesses; ++i) {
        // Beyond the last token the guesses themselves go on: a text that repeats itself.
        const size_t at = begin + i;
        sequence->draft.push_back(at < tokens.size() ? tokens[at]
                                                     : sequence->draft[1 + at - tokens.size()]);
      }
    }
  }
};

class ModelDrafter final : public Drafter {
 public:
  ModelDrafter(std::unique_ptr<BackendModel> model, const BackendLimits& limits,
               int max_context_tokens, GuessFn guess)
      : limits_(limits),
        max_context_tokens_(max_context_tokens),
        guess_(std::move(guess)),
        model_(std::move(model)),
        pages_(model_->num_pages(), model_->page_tokens(), model_->max_sequences()) {
    batch_.reserve(limits.max_sequences);
    drafting_.reserve(limits.max_sequences);
  }

  int64_t weight_bytes() const override { return model_->weight_bytes(); }
  int64_t kv_bytes() const override { return model_->kv_bytes(); }

  void Draft(absl::Span<Sequence* const> sequences) override {
    drafting_.clear();
    int tokens_left = limits_.max_step_tokens;
    for (Sequence* sequence : sequences) {
      const int num_tokens = CatchUp(*sequence, tokens_left);
      if (num_tokens == 0) continue;
      tokens_left -= num_tokens;
      drafting_.push_back({sequence, num_tokens});
    }
    while (!drafting_.empty() && Step()) {
      // Those that want no more guesses leave; the others go on with the one they got.
      std::erase_if(drafting_, [](const Run& run) {
        return run.num_tokens == 0 || run.sequence->num_guesses() >= run.sequence->max_guesses;
      });
    }
    // The guesses stood where the next draws looked for them.
    for (Sequence* sequence : sequences) {
      sequence->tokens.resize(sequence->tokens.size() - sequence->num_guesses());
    }
  }

 private:
  struct Run {
    Sequence* sequence;
    int num_tokens;
  };

  // How many tokens of `sequence` the first step of this draft computes; 0: it is left out.
  int CatchUp(Sequence& sequence, int tokens_left) {
    if (sequence.draft_pages == nullptr) {
      sequence.draft_pages = std::make_unique<PageLease>(&pages_, sequence.prefix_root);
      sequence.num_draft_computed = 0;
    }
    PageLease& lease = *sequence.draft_pages;
    // Guesses that were not kept.
    sequence.num_draft_computed = std::min(sequence.num_draft_computed, sequence.num_computed);
    if (lease.size() == 0) sequence.num_draft_computed = lease.TakeCached(sequence.tokens);
    const int wanted = sequence.num_tokens() + sequence.max_guesses;
    if (wanted > max_context_tokens_ || !lease.GrowTo(PagesFor(wanted))) {
      lease.Release();
      return 0;
    }
    return std::min(sequence.num_tokens() - sequence.num_draft_computed, tokens_left);
  }

  int PagesFor(int num_tokens) const {
    return (num_tokens + limits_.page_tokens - 1) / limits_.page_tokens;
  }

  // Computes what `drafting_` says and gives each sequence that is through a guess. False when the
  // model failed: there are no guesses then, and nothing else is lost.
  bool Step() {
    batch_.clear();
    for (const Run& run : drafting_) {
      const Sequence& sequence = *run.sequence;
      const auto tokens =
          absl::MakeConstSpan(sequence.tokens).subspan(sequence.num_draft_computed, run.num_tokens);
      const bool through = sequence.num_draft_computed + run.num_tokens == sequence.num_tokens();
      batch_.push_back({.tokens = tokens,
                        .position = sequence.num_draft_computed,
                        .pages = sequence.draft_pages->pages(),
                        .slot = sequence.draft_pages->slot(),
                        .num_logits = through ? 1 : 0});
    }
    const absl::StatusOr<absl::Span<const float>> logits = model_->Step(batch_);
    if (!logits.ok()) {
      LOG(WARNING) << "draft model failed error=" << logits.status();
      return false;
    }
    const size_t vocab_size = logits->size() / std::max<size_t>(1, NumLogits());
    size_t row = 0;
    for (size_t i = 0; i < drafting_.size(); ++i) {
      Sequence& sequence = *drafting_[i].sequence;
      sequence.num_draft_computed += drafting_[i].num_tokens;
      // Of the sequence's own tokens; guesses may not stay.
      const int certain = std::min(sequence.num_draft_computed, sequence.num_computed);
      sequence.draft_pages->Publish(absl::MakeConstSpan(sequence.tokens).first(certain));
      drafting_[i].num_tokens = 0;
      if (batch_[i].num_logits == 0) continue;
      const absl::StatusOr<int32_t> guess =
          guess_(sequence, logits->subspan(row++ * vocab_size, vocab_size));
      if (!guess.ok()) continue;
      sequence.draft.push_back(*guess);
      sequence.tokens.push_back(*guess);
      drafting_[i].num_tokens = 1;
    }
    return true;
  }

  size_t NumLogits() const {
    size_t rows = 0;
    for (const BatchRun& run : batch_) rows += run.num_logits;
    return rows;
  }

  const BackendLimits limits_;
  const int max_context_tokens_;
  const GuessFn guess_;
  const std::unique_ptr<BackendModel> model_;
  KvPagePool pages_;
  // Of the step that runs; kept for their memory.
  Batch batch_;
  std::vector<Run> drafting_;
};

}  // namespace

std::unique_ptr<Drafter> MakeNgramDrafter() { return std::make_unique<NgramDrafter>(); }

std::unique_ptr<Drafter> MakeModelDrafter(std::unique_ptr<BackendModel> model,
                                          const BackendLimits& limits, int max_context_tokens,
                                          GuessFn guess) {
  return std::make_unique<ModelDrafter>(std::move(model), limits, max_context_tokens,
                                        std::move(guess));
}

}  // namespace quern

#ifndef QUERN_CORE_QUANT_CALIBRATION_DATA_H_
#define QUERN_CORE_QUANT_CALIBRATION_DATA_H_

#include "core/quant/activation_store.h"
#include "core/quant/e2e_qp.h"

namespace quern {

// Calibration sequences for end-to-end training: the student's next-token distribution against the
// source's, or against the tokens themselves, as the settings say.
class CalibrationData final : public E2eData {
 public:
  // token_ids: [num_sequences, num_tokens]; source_states: the source's states after its last block
  // for these tokens, from sequence settings.first_sample on (its sequences may be longer: later
  // tokens do not change earlier states). All must outlive this.
  CalibrationData(const ModelConfig& config, const E2eQpSettings& settings, at::Tensor token_ids,
                  const ActivationStore& source_states, const OuterTensors& source)
      : config_(config),
        settings_(settings),
        token_ids_(std::move(token_ids)),
        source_states_(source_states),
        source_(source) {}

  int64_t num_sequences() const override { return token_ids_.size(0); }
  int64_t Length(int64_t) const override { return token_ids_.size(1); }
  at::Tensor TokenIds(int64_t begin, int64_t count) const override {
    return token_ids_.narrow(0, begin, count);
  }
  double Weight(int64_t, int64_t count) const override { return static_cast<double>(count); }
  at::Tensor Loss(int64_t begin, int64_t count, const at::Tensor& hidden,
                  const at::Tensor& head) const override;

 private:
  const ModelConfig& config_;
  const E2eQpSettings& settings_;
  const at::Tensor token_ids_;
  const ActivationStore& source_states_;
  const OuterTensors& source_;
};

}  // namespace quern

#endif  // QUERN_CORE_QUANT_CALIBRATION_DATA_H_

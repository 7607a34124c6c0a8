#ifndef QUERN_CORE_ARTIFACT_TENSOR_CHECK_H_
#define QUERN_CORE_ARTIFACT_TENSOR_CHECK_H_

#include <absl/status/status.h>

#include "core/artifact/packed_model.h"

namespace quern {

// Checks that `model` holds exactly the tensors of its config, each coded as its format says, with
// finite numbers and with zeros where a run of codes is filled up, so that equal weights have equal
// bytes. Reads every scale, half matrix and vector. INVALID_ARGUMENT naming the tensor.
absl::Status CheckModelTensors(const PackedModel& model);

}  // namespace quern

#endif  // QUERN_CORE_ARTIFACT_TENSOR_CHECK_H_

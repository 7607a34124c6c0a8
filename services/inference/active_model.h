#ifndef QUERN_SERVICES_INFERENCE_ACTIVE_MODEL_H_
#define QUERN_SERVICES_INFERENCE_ACTIVE_MODEL_H_

#include <memory>
#include <string>

#include "core/engine/engine.h"
#include "services/inference/metrics.h"

namespace quern {

// What a request needs to know of an ACTIVE model. Immutable.
struct ActiveModel {
  std::string id;  // the last part of models/{model}
  ModelHandle handle = 0;
  ModelInfo info;
  std::shared_ptr<const Tokenizer> tokenizer;  // null when the model came without one
  std::string system_fingerprint;
  std::shared_ptr<const ModelMetrics> metrics;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_ACTIVE_MODEL_H_

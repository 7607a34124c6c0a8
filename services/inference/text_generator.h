#ifndef QUERN_SERVICES_INFERENCE_TEXT_GENERATOR_H_
#define QUERN_SERVICES_INFERENCE_TEXT_GENERATOR_H_

#include <absl/status/status.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <functional>
#include <memory>

#include "core/engine/engine.h"
#include "services/common/executor.h"
#include "services/inference/generation_sink.h"
#include "services/inference/model_registry.h"

namespace quern {

// The way of a request into the engine, whichever protocol it came by: checked, tokenized and
// submitted. Thread-safe.
class TextGenerator {
 public:
  // All references outlive this.
  TextGenerator(Engine& engine, ModelRegistry& registry);

  // RESOURCE_EXHAUSTED when too many wait. Tokenizing a long prompt takes milliseconds: it and what
  // takes as long runs on threads of this.
  [[nodiscard]] absl::Status Post(std::function<void()> work);

  // Checks, tokenizes and submits, on the calling thread; `sink` hears of a refusal like of any
  // other end.
  void Generate(const inference::v1::GenerateTextRequest& request, absl::Time deadline,
                const std::shared_ptr<GenerationSink>& sink);

 private:
  Engine& engine_;
  ModelRegistry& registry_;
  Executor executor_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_TEXT_GENERATOR_H_

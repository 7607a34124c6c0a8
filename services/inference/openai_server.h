#ifndef QUERN_SERVICES_INFERENCE_OPENAI_SERVER_H_
#define QUERN_SERVICES_INFERENCE_OPENAI_SERVER_H_

#include <absl/strings/string_view.h>
#include <absl/types/span.h>

#include <memory>

#include "core/base/clock.h"
#include "services/common/http_server.h"
#include "services/inference/metrics.h"
#include "services/inference/model_registry.h"
#include "services/inference/text_generator.h"

namespace quern {

// OpenAI's HTTP API: POST /v1/completions and /v1/chat/completions, whole or as server-sent events,
// GET /v1/models and /v1/models/{model}; vLLM's POST /tokenize and /detokenize. The same engine,
// checks and limits as the gRPC services.
class OpenAiApi {
 public:
  // All references outlive the server that uses this.
  OpenAiApi(TextGenerator& generator, ModelRegistry& registry, InferenceMetrics& metrics,
            Clock& clock)
      : generator_(generator), registry_(registry), metrics_(metrics), clock_(clock) {}

  // What is served; a path that ends with '/' stands for all below it. Anything else is 404.
  static absl::Span<const absl::string_view> Paths();

  // Answers one request, at once or later. Thread-safe.
  void Handle(std::shared_ptr<HttpExchange> exchange);
  // An answer of the same form for what is refused before it gets here.
  static HttpResponse Refuse(int status, absl::string_view message);

 private:
  // On a thread of the generator.
  void Complete(const std::shared_ptr<HttpExchange>& exchange, bool chat, absl::Time deadline);
  void Tokenize(const std::shared_ptr<HttpExchange>& exchange);
  void Detokenize(const std::shared_ptr<HttpExchange>& exchange);
  HttpResponse ListModels() const;
  HttpResponse GetModel(absl::string_view id) const;

  TextGenerator& generator_;
  ModelRegistry& registry_;
  InferenceMetrics& metrics_;
  Clock& clock_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_OPENAI_SERVER_H_

#include "services/inference/openai_server.h"

#include <absl/base/thread_annotations.h>
#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "core/base/mutex.h"
#include "core/base/utf8.h"
#include "services/common/policy.h"
#include "services/inference/openai_request.h"
#include "services/inference/openai_response.h"

namespace quern {
namespace {

using OrderedJson = nlohmann::ordered_json;
using inference::v1::GenerateTextRequest;
using inference::v1::GenerateTextResponse;

class Completion;

// One choice of a completion. What arrives while the server's thread is busy is joined.
class ChoiceSink final : public GenerationSink {
 public:
  struct News {
    GenerateTextResponse response;  // pieces joined; after the end also the closing fields
    std::optional<absl::Status> end;
  };
  ChoiceSink(InferenceMetrics& metrics, std::shared_ptr<Completion> owner, int index)
      : GenerationSink(metrics), owner_(std::move(owner)), index_(index) {}

  void Cancel() { MarkCancelled(); }
  News TakeNews() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    announced_ = false;
    return std::exchange(news_, {});
  }

 private:
  void Deliver(const GenerateTextResponse& piece) override ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    news_.response.mutable_logprobs()->MergeFrom(piece.logprobs());
    news_.response.mutable_prompt_logprobs()->MergeFrom(piece.prompt_logprobs());
    news_.response.mutable_text()->append(piece.text());
    Announce();
  }
  void Close(const absl::Status& status, const GenerateTextResponse& closing) override
      ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    news_.response.MergeFrom(closing);
    news_.end = status;
    Announce();
  }
  void Announce() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<Completion> owner_;
  const int index_;
  Mutex mutex_;
  News news_ ABSL_GUARDED_BY(mutex_);
  bool announced_ ABSL_GUARDED_BY(mutex_) = false;
};

// One request for text: its choices and what became of them. Started on a thread of the generator;
// from then on all of it runs on the HTTP server's thread. Its sinks keep it alive until all of
// them have ended.
class Completion : public std::enable_shared_from_this<Completion> {
 public:
  Completion(std::shared_ptr<HttpExchange> exchange, OpenAiRequest request, OpenAiAnswer answer)
      : exchange_(std::move(exchange)), request_(std::move(request)), answer_(std::move(answer)) {}

  void Start(TextGenerator& generator, absl::Time deadline, InferenceMetrics& metrics);

  HttpExchange& exchange() { return *exchange_; }
  // Takes what is new of one choice.
  void OnNews(int index);

 private:
  // The text of a prompt, special tokens and all.
  std::string PromptText(const inference::v1::GenerateTextRequest& request) const;
  void CancelAll();
  void Fail(const absl::Status& status);
  void Stream(const OpenAiChoice& piece);
  void Finish();

  const std::shared_ptr<HttpExchange> exchange_;
  OpenAiRequest request_;  // its choices' requests until they are started
  const OpenAiAnswer answer_;
  std::vector<std::shared_ptr<ChoiceSink>> sinks_;  // each until it has ended
  std::vector<OpenAiChoice> choices_;
  OpenAiUsage usage_;
  int num_ended_ = 0;
  bool failed_ = false;
  bool streaming_ = false;
};

void ChoiceSink::Announce() {
  if (std::exchange(announced_, true)) return;
  owner_->exchange().Post([owner = owner_, index = index_] { owner->OnNews(index); });
}

void Completion::Start(TextGenerator& generator, absl::Time deadline, InferenceMetrics& metrics) {
  std::vector<std::shared_ptr<ChoiceSink>> sinks;
  for (size_t i = 0; i < request_.choices.size(); ++i) {
    const int index = static_cast<int>(i);
    sinks.push_back(std::make_shared<ChoiceSink>(metrics, shared_from_this(), index));
    const OpenAiRequest::Choice& choice = request_.choices[i];
    choices_.push_back({.index = index,
                        .text = choice.echo ? PromptText(choice.request) : "",
                        .is_first_piece = true,
                        .echo_logprobs = choice.echo_logprobs,
                        .prompt_logprobs = choice.prompt_logprobs});
  }
  // Before any of them has news.
  exchange_->Post([self = shared_from_this(), sinks] { self->sinks_ = sinks; });
  exchange_->WhenGone([self = weak_from_this()] {
    if (const auto completion = self.lock()) completion->CancelAll();
  });
  for (size_t i = 0; i < sinks.size(); ++i) {
    // Taken out: the prompt need not stay while the answer is made.
    const GenerateTextRequest request = std::move(request_.choices[i].request);
    generator.Generate(request, exchange_->request().principal, deadline, sinks[i]);
  }
}

std::string Completion::PromptText(const inference::v1::GenerateTextRequest& request) const {
  if (!request.has_prompt_tokens() || answer_.tokenizer == nullptr) return request.prompt();
  const auto& ids = request.prompt_tokens().ids();
  return answer_.tokenizer->Decode(absl::MakeConstSpan(ids.data(), ids.size()),
                                   /*keep_special=*/true);
}

void Completion::CancelAll() {
  for (const auto& sink : sinks_) {
    if (sink != nullptr) sink->Cancel();
  }
}

void Completion::OnNews(int index) {
  ChoiceSink::News news = sinks_[index]->TakeNews();
  if (news.end.has_value()) {
    sinks_[index] = nullptr;
    ++num_ended_;
  }
  if (failed_) return;
  if (news.end.has_value() && !news.end->ok()) return Fail(*news.end);

  OpenAiChoice& choice = choices_[index];
  choice.text += news.response.text();
  choice.response.MergeFrom(news.response);
  if (news.end.has_value()) {
    const inference::v1::Usage& usage = news.response.usage();
    usage_.completion_tokens += usage.output_tokens();
    if (request_.choices[index].is_first_of_prompt) {
      usage_.prompt_tokens += usage.prompt_tokens();
      usage_.cached_tokens += usage.cached_prompt_tokens();
    }
  }
  if (request_.stream) {
    Stream(choice);
    choice.is_first_piece = false;
    choice.text.clear();
    choice.response.Clear();
  }
  if (num_ended_ == static_cast<int>(choices_.size())) Finish();
}

void Completion::Stream(const OpenAiChoice& piece) {
  if (!std::exchange(streaming_, true)) exchange_->StartStream("text/event-stream");
  exchange_->Write(PieceEvent(answer_, piece));
}

void Completion::Fail(const absl::Status& status) {
  failed_ = true;
  CancelAll();
  if (!streaming_) return exchange_->Respond(ErrorResponse(status));
  exchange_->Write(ErrorEvent(status));
  exchange_->EndStream();
}

void Completion::Finish() {
  if (!request_.stream) {
    return exchange_->Respond(
        {.content_type = "application/json", .body = WholeBody(answer_, choices_, usage_)});
  }
  if (request_.include_usage) exchange_->Write(UsageEvent(answer_, usage_));
  exchange_->Write("data: [DONE]\n\n");
  exchange_->EndStream();
}

constexpr absl::string_view kPaths[] = {"/v1/models",           "/v1/models/", "/v1/completions",
                                        "/v1/chat/completions", "/tokenize",   "/detokenize"};

// Under a name of its own or of an alias.
OrderedJson ModelJson(absl::string_view id, const inference::v1::Model& model) {
  return {{"id", std::string(id)},
          {"object", "model"},
          {"created", model.create_time().seconds()},
          {"owned_by", "quern"},
          {"root", std::string(absl::StripPrefix(model.name(), "models/"))},
          {"context_tokens", model.context_tokens()}};
}

HttpResponse JsonResponse(const OrderedJson& json) {
  return {.content_type = "application/json",
          .body = json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace)};
}

}  // namespace

absl::Span<const absl::string_view> OpenAiApi::Paths() { return kPaths; }

HttpResponse OpenAiApi::Refuse(int status, absl::string_view message) {
  return {.status = status,
          .content_type = "application/json",
          .body = ErrorBody(status, message, "", "")};
}

void OpenAiApi::Handle(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  const bool completion = request.path == "/v1/completions";
  const bool chat = request.path == "/v1/chat/completions";
  const bool tokenize = request.path == "/tokenize";
  const bool detokenize = request.path == "/detokenize";
  const bool posts = completion || chat || tokenize || detokenize;
  absl::string_view model_id = request.path;
  const bool one_model = absl::ConsumePrefix(&model_id, "/v1/models/");
  if (!PathIsOneOf(Paths(), request.path)) {
    return exchange->Respond(Refuse(404,
                                    "unknown path; there are /v1/models, /v1/completions, "
                                    "/v1/chat/completions, /tokenize and /detokenize"));
  }
  const absl::string_view method = posts ? "POST" : "GET";
  if (request.method != method) {
    HttpResponse response = Refuse(405, absl::StrCat("only ", method, " is allowed here"));
    response.headers = {{"Allow", std::string(method)}};
    return exchange->Respond(std::move(response));
  }
  if (one_model) return exchange->Respond(GetModel(model_id));
  if (!posts) return exchange->Respond(ListModels());
  // Pages of other sites may make browsers send other types without asking.
  if (!absl::StartsWithIgnoreCase(request.content_type, "application/json")) {
    return exchange->Respond(Refuse(415, "the Content-Type must be application/json"));
  }
  const absl::Time deadline = generator_.DeadlineOf(absl::InfiniteFuture());
  absl::Status taken =
      tokenize || detokenize ? absl::OkStatus() : generator_.CheckRoom(request.principal);
  if (taken.ok()) {
    taken = generator_.Post([this, exchange, chat, tokenize, detokenize, deadline] {
      if (tokenize) return Tokenize(exchange);
      if (detokenize) return Detokenize(exchange);
      Complete(exchange, chat, deadline);
    });
  }
  if (!taken.ok()) {
    metrics_.Reject(absl::IsUnavailable(taken) ? Rejection::kDraining : RejectionOf(taken));
    exchange->Respond(ErrorResponse(taken));
  }
}

void OpenAiApi::Complete(const std::shared_ptr<HttpExchange>& exchange, bool chat,
                         absl::Time deadline) {
  const std::string& body = exchange->request().body;
  absl::StatusOr<OpenAiRequest> parsed = chat ? ParseChatCompletion(body) : ParseCompletion(body);
  if (!parsed.ok()) {
    metrics_.Reject(Rejection::kInvalid);
    return exchange->Respond(ErrorResponse(parsed.status()));
  }
  const std::string name = parsed->choices.front().request.model();
  const auto request = std::make_shared<OpenAiRequest>(*std::move(parsed));
  // Loaded before the choices start: they find it then. What is wrong with the model each of
  // them says; here it is for the fingerprint.
  generator_.WithModel(name, [this, exchange, request, chat, deadline](const auto& model) {
    OpenAiAnswer answer{.id = NewOpenAiId(chat),
                        .created = absl::ToUnixSeconds(clock_.Now()),
                        .model = request->model,
                        .system_fingerprint = model.ok() ? (*model)->system_fingerprint : "",
                        .chat = chat,
                        .tokenizer = model.ok() ? (*model)->tokenizer : nullptr};
    std::make_shared<Completion>(exchange, std::move(*request), std::move(answer))
        ->Start(generator_, deadline, metrics_);
  });
}

void OpenAiApi::Tokenize(const std::shared_ptr<HttpExchange>& exchange) {
  absl::StatusOr<OpenAiTokenize> parsed = ParseTokenize(exchange->request().body);
  if (!parsed.ok()) return exchange->Respond(ErrorResponse(parsed.status()));
  const std::string name = parsed->request.model();
  generator_.WithModel(name, [this, exchange, tokenize = *std::move(parsed)](const auto& model) {
    if (!model.ok()) return exchange->Respond(ErrorResponse(model.status()));
    inference::v1::TokenizeResponse response;
    const absl::Status status = generator_.Tokenize(tokenize.request, **model, &response);
    if (!status.ok()) return exchange->Respond(ErrorResponse(status));
    OrderedJson texts;
    if (tokenize.token_strs) {
      texts = OrderedJson::array();
      for (const std::string& piece : response.pieces()) texts.push_back(ReplaceInvalidUtf8(piece));
    }
    const std::vector<int32_t> ids(response.token_ids().begin(), response.token_ids().end());
    exchange->Respond(JsonResponse({{"count", response.token_ids_size()},
                                    {"max_model_len", (*model)->info.max_context_tokens},
                                    {"tokens", ids},
                                    {"token_strs", std::move(texts)}}));
  });
}

void OpenAiApi::Detokenize(const std::shared_ptr<HttpExchange>& exchange) {
  const auto request = ParseDetokenize(exchange->request().body);
  if (!request.ok()) return exchange->Respond(ErrorResponse(request.status()));
  generator_.WithModel(request->model(), [this, exchange, request = *request](const auto& model) {
    if (!model.ok()) return exchange->Respond(ErrorResponse(model.status()));
    inference::v1::DetokenizeResponse response;
    const absl::Status status = generator_.Detokenize(request, **model, &response);
    if (!status.ok()) return exchange->Respond(ErrorResponse(status));
    exchange->Respond(JsonResponse({{"prompt", response.text()}}));
  });
}

HttpResponse OpenAiApi::ListModels() const {
  OrderedJson data = OrderedJson::array();
  inference::v1::ListModelsRequest request;
  request.set_page_size(1000);
  const auto models = registry_.List(request);
  if (!models.ok()) return ErrorResponse(models.status());
  for (const inference::v1::Model& model : models->models()) {
    if (!CanBeAsked(model)) continue;
    data.push_back(ModelJson(absl::StripPrefix(model.name(), "models/"), model));
    for (const absl::string_view alias : model.aliases()) {
      data.push_back(ModelJson(absl::StripPrefix(alias, "aliases/"), model));
    }
  }
  return JsonResponse({{"object", "list"}, {"data", std::move(data)}});
}

HttpResponse OpenAiApi::GetModel(absl::string_view id) const {
  const auto model = registry_.Get(absl::StrCat("models/", id));
  if (!model.ok()) return ErrorResponse(model.status());
  return JsonResponse(ModelJson(id, *model));
}

}  // namespace quern

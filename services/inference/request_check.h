#ifndef QUERN_SERVICES_INFERENCE_REQUEST_CHECK_H_
#define QUERN_SERVICES_INFERENCE_REQUEST_CHECK_H_

// Checks of what clients send that are not the engine's, and the way from a request that passed to
// what the engine takes. Each message names the field, what was found and what is allowed.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <absl/time/time.h>
#include <quern/inference/v1/inference_service.pb.h>

#include <optional>
#include <string>

#include "core/engine/engine.h"
#include "services/inference/active_model.h"

namespace quern {

// Limits of one request; reference values of peers, see the messages.
inline constexpr int kMaxPromptBytes = 1 << 20;
inline constexpr int kMaxChatMessages = 1024;
inline constexpr int kMaxDetokenizeIds = 1 << 18;

// [a-z0-9-], 1 to 63 long; `field` goes into the message.
absl::Status CheckModelId(absl::string_view id, absl::string_view field);

// The {model} of "models/{model}".
absl::StatusOr<std::string> ParseModelName(absl::string_view name, absl::string_view field);
// The {alias} of "aliases/{alias}".
absl::StatusOr<std::string> ParseAliasName(absl::string_view name, absl::string_view field);

absl::Status CheckCreateModel(const inference::v1::CreateModelRequest& request);

// Those that are not valid are NORMAL.
Priority PriorityOf(inference::v1::GenerateTextRequest::Priority priority);

// What can be said without the model.
absl::Status CheckGenerateText(const inference::v1::GenerateTextRequest& request);

// Tokenizes the input of a checked request and fits it to `model`. FAILED_PRECONDITION when it
// takes a tokenizer and the model has none.
absl::StatusOr<GenerationRequest> MakeGeneration(const inference::v1::GenerateTextRequest& request,
                                                 const ActiveModel& model, const Engine& engine,
                                                 absl::Time deadline);

// What the text of a checked request must be; unset when it may be any.
std::optional<ConstraintSpec> ConstraintOf(const inference::v1::GenerateTextRequest& request);

// The number of tokens that the input takes as a prompt of `model`.
absl::StatusOr<int> CountPromptTokens(const inference::v1::CountTokensRequest& request,
                                      const ActiveModel& model, const Engine& engine);

// Errors of both as MakeGeneration's.
absl::StatusOr<inference::v1::TokenizeResponse> TokenizeInput(
    const inference::v1::TokenizeRequest& request, const ActiveModel& model, const Engine& engine);
absl::StatusOr<inference::v1::DetokenizeResponse> DetokenizeIds(
    const inference::v1::DetokenizeRequest& request, const ActiveModel& model);

// True when a status of the functions above means a prompt beyond a limit.
bool IsTooLong(const absl::Status& status);

}  // namespace quern

#endif  // QUERN_SERVICES_INFERENCE_REQUEST_CHECK_H_

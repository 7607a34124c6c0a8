#ifndef QUERN_SERVICES_CLI_GENERATE_H_
#define QUERN_SERVICES_CLI_GENERATE_H_

// What `quern complete` and `quern chat` share.

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "services/cli/context.h"

namespace quern::cli {

struct GenerateOptions {
  std::string model;
  std::string text;
  std::string system;
  float temperature = 0;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  std::optional<int64_t> seed;
  int max_tokens = 0;
  std::vector<std::string> stop;
  std::string json_schema;  // file
  std::string regex;
  std::vector<std::string> choices;
  bool stats = false;
};

void AddGenerateOptions(CLI::App* sub, GenerateOptions& options);

absl::StatusOr<inference::v1::GenerateTextRequest> MakeGenerateRequest(
    const GenerateOptions& options);

// What came of a request, as far as it came.
struct Generation {
  absl::Status status;
  std::string text;
  // The last message; its text and token ids are those of the whole answer.
  inference::v1::GenerateTextResponse last;
};

// `on_text` gets each piece as it comes. The user's interrupt cancels the call.
Generation Generate(const std::shared_ptr<grpc::Channel>& channel,
                    const inference::v1::GenerateTextRequest& request,
                    const std::function<void(absl::string_view)>& on_text, Interrupt& interrupt);

// The same on standard output (with --json one object at the end), and with --stats what
// DescribeGeneration says on standard error.
absl::Status PrintGeneration(const inference::v1::GenerateTextRequest& request,
                             const GenerateOptions& options, Context& context, Interrupt& interrupt,
                             std::string* text);

// Tokens a second once the first has come; 0 for less than two.
double DecodeRate(const inference::v1::Usage& usage);

// "24 tokens, 91.4 tokens/s, prompt of 5, first token after 0.041 s, END_OF_TEXT, seed 7, ...".
std::string DescribeGeneration(const inference::v1::GenerateTextResponse& last);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_GENERATE_H_

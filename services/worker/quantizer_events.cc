#include "services/worker/quantizer_events.h"

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>

#include "core/base/json.h"
#include "core/base/status_macros.h"
#include "core/base/utf8.h"

namespace quern {
namespace {

using quantization::v1::JobError;
using quantization::v1::Progress;
using worker::v1::WorkerCapabilities;

constexpr size_t kMaxLogBytes = 4096;
constexpr size_t kMaxErrorBytes = 8192;
constexpr double kMaxGflops = 1e9;
constexpr double kMaxRemainingSeconds = 1e8;

absl::StatusOr<QuantizerEvent> ParseDevice(const JsonObject& object) {
  WorkerCapabilities device;
  ASSIGN_OR_RETURN(const std::string kind, object.String("device"));
  if (kind == "cpu") {
    device.set_device(WorkerCapabilities::CPU);
  } else if (kind == "cuda") {
    device.set_device(WorkerCapabilities::CUDA);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("device: found '", CleanText(kind, 64), "', wanted cpu or cuda"));
  }
  ASSIGN_OR_RETURN(const std::string name, object.StringOr("name", ""));
  device.set_device_name(CleanText(name, 256));
  ASSIGN_OR_RETURN(const int64_t memory_bytes, object.IntOr("memory_bytes", 0, INT64_MAX, 0));
  device.set_memory_bytes(memory_bytes);
  ASSIGN_OR_RETURN(const double gflops, object.NumberOr("gflops", 0, kMaxGflops, 0));
  device.set_gflops(gflops);
  ASSIGN_OR_RETURN(const double bfloat16_gflops,
                   object.NumberOr("bfloat16_gflops", 0, kMaxGflops, 0));
  device.set_bfloat16_gflops(bfloat16_gflops);
  return device;
}

absl::StatusOr<QuantizerEvent> ParseProgress(const JsonObject& object) {
  Progress progress;
  ASSIGN_OR_RETURN(const std::string stage, object.String("stage"));
  Progress::Stage parsed = Progress::STAGE_UNSPECIFIED;
  if (!Progress::Stage_Parse(stage, &parsed) || parsed == Progress::STAGE_UNSPECIFIED) {
    return absl::InvalidArgumentError(
        absl::StrCat("stage: '", CleanText(stage, 64), "' is not known"));
  }
  progress.set_stage(parsed);
  ASSIGN_OR_RETURN(const int64_t total, object.IntOr("total", 0, INT64_MAX, 0));
  ASSIGN_OR_RETURN(const int64_t completed, object.IntOr("completed", 0, INT64_MAX, 0));
  progress.set_total_count(total);
  progress.set_completed_count(std::min(completed, total));
  const Json* loss = object.Find("loss");
  if (loss != nullptr && loss->is_number()) progress.set_loss(loss->get<double>());
  const Json* remaining = object.Find("remaining_seconds");
  if (remaining != nullptr && remaining->is_number()) {
    const double seconds = std::clamp(remaining->get<double>(), 0.0, kMaxRemainingSeconds);
    progress.mutable_remaining()->set_seconds(static_cast<int64_t>(seconds));
    progress.mutable_remaining()->set_nanos(
        static_cast<int>((seconds - static_cast<double>(static_cast<int64_t>(seconds))) * 1e9));
  }
  return progress;
}

absl::StatusOr<QuantizerEvent> ParseResult(const JsonObject& object) {
  QuantizerResult result;
  ASSIGN_OR_RETURN(result.directory, object.String("directory"));
  const Json* evaluation = object.Find("evaluation");
  if (evaluation != nullptr && !evaluation->is_null()) {
    google::protobuf::util::JsonParseOptions options;
    options.ignore_unknown_fields = true;
    const auto status = google::protobuf::util::JsonStringToMessage(DumpCanonicalJson(*evaluation),
                                                                    &result.evaluation, options);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("evaluation: ", std::string(status.message())));
    }
  }
  return result;
}

absl::StatusOr<QuantizerEvent> ParseError(const JsonObject& object) {
  JobError error;
  ASSIGN_OR_RETURN(const int64_t code, object.Int("code", 1, 16));
  error.set_code(static_cast<int>(code));
  ASSIGN_OR_RETURN(const std::string reason, object.StringOr("reason", ""));
  const bool good = !reason.empty() && reason.size() <= 63 &&
                    std::all_of(reason.begin(), reason.end(), [](char c) {
                      const auto byte = static_cast<unsigned char>(c);
                      return absl::ascii_isupper(byte) || absl::ascii_isdigit(byte) || c == '_';
                    });
  error.set_reason(good ? reason : "UNKNOWN");
  ASSIGN_OR_RETURN(const std::string message, object.StringOr("message", ""));
  error.set_message(CleanText(message, kMaxErrorBytes));
  return error;
}

}  // namespace

std::string CleanText(absl::string_view text, size_t max_bytes) {
  std::string clean(text.substr(0, max_bytes));
  if (text.size() > max_bytes) {
    // A character that was cut loses its first bytes too.
    std::string whole = clean;
    for (int i = 0; i < 3 && !whole.empty() && !IsUtf8(whole); ++i) whole.pop_back();
    if (IsUtf8(whole)) clean = whole;
  }
  if (!IsUtf8(clean)) {
    for (char& c : clean) {
      if (static_cast<unsigned char>(c) >= 0x80) c = '?';
    }
  }
  for (char& c : clean) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  return clean;
}

absl::StatusOr<QuantizerEvent> ParseQuantizerEvent(absl::string_view line) {
  ASSIGN_OR_RETURN(const Json json, ParseJson(line, "quantizer output"));
  ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, "quantizer output"));
  ASSIGN_OR_RETURN(const std::string event, object.String("event"));
  if (event == "device") return ParseDevice(object);
  if (event == "progress") return ParseProgress(object);
  if (event == "result") return ParseResult(object);
  if (event == "error") return ParseError(object);
  if (event == "log") {
    ASSIGN_OR_RETURN(const std::string message, object.String("message"));
    return QuantizerLog{CleanText(message, kMaxLogBytes)};
  }
  return absl::InvalidArgumentError(
      absl::StrCat("quantizer output: event '", CleanText(event, 64), "' is not known"));
}

}  // namespace quern

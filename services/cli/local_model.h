#ifndef QUERN_SERVICES_CLI_LOCAL_MODEL_H_
#define QUERN_SERVICES_CLI_LOCAL_MODEL_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "core/engine/engine.h"

namespace quern::cli {

// A model in an engine of this process, without any service.
struct LocalModel {
  ModelHandle handle = 0;
  ModelInfo info;
  std::shared_ptr<const Tokenizer> tokenizer;  // null when the model came without one
  std::string format;                          // "w4 g64", or "as it came" for a checkpoint
};

// An engine for one user at a time. `num_threads` 0: one for each CPU. `kernels` as in
// EngineOptions.
absl::StatusOr<std::unique_ptr<Engine>> MakeLocalEngine(int num_threads,
                                                        absl::string_view kernels = "");

// Loads an artifact directory (one with a manifest.json) or a checkpoint.
absl::StatusOr<LocalModel> LoadLocalModel(Engine& engine, absl::string_view path,
                                          const LoadOptions& options = {});

// What LoadLocalModel loads, for a model that another one takes as its draft.
absl::StatusOr<std::unique_ptr<ModelSource>> OpenLocalSource(absl::string_view path);

// An option with the values mixed, int8, int16 and float.
void AddPrecision(CLI::App& app, const std::string& name, const std::string& of_what,
                  Precision& precision);

// The option --kv-cache with the values float16, int8 and int4.
void AddKvCacheType(CLI::App& app, KvCacheType& type);

}  // namespace quern::cli

#endif  // QUERN_SERVICES_CLI_LOCAL_MODEL_H_

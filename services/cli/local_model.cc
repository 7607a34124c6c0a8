#include "services/cli/local_model.h"

#include <absl/strings/str_cat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/artifact/artifact.h"
#include "core/base/machine.h"
#include "core/base/status_macros.h"
#include "core/checkpoint/checkpoint.h"
#include "core/engine/model_source.h"
#include "services/cli/format.h"

namespace quern::cli {
namespace {

struct OpenedModel {
  std::unique_ptr<ModelSource> source;
  std::string format;
};

absl::StatusOr<OpenedModel> Open(absl::string_view path) {
  if (access(absl::StrCat(path, "/", kManifestName).c_str(), F_OK) == 0) {
    ASSIGN_OR_RETURN(LoadedArtifact artifact, LoadArtifact(path));
    const QuantFormat format = artifact.model.format;
    const double bits = MeanBits(format, artifact.model.config);
    return OpenedModel{
        MakeModelSource(std::make_shared<const PackedModel>(std::move(artifact.model))),
        FormatQuantization(bits, format.group_size, format.symmetric)};
  }
  ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> checkpoint, OpenCheckpoint(path));
  return OpenedModel{MakeModelSource(std::shared_ptr<const Checkpoint>(std::move(checkpoint))),
                     "as it came"};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> MakeLocalEngine(int num_threads,
                                                        absl::string_view kernels) {
  EngineOptions options;
  options.kernels = std::string(kernels);
  options.prefix_cache = false;  // what is measured is to be computed
  options.num_threads = num_threads > 0 ? num_threads : AvailableCpus();
  options.LiftQueueLimits();
  return Engine::Create(options);
}

absl::StatusOr<LocalModel> LoadLocalModel(Engine& engine, absl::string_view path,
                                          const LoadOptions& options) {
  ASSIGN_OR_RETURN(OpenedModel opened, Open(path));
  LocalModel model;
  model.format = std::move(opened.format);
  ASSIGN_OR_RETURN(model.handle, engine.Load(*opened.source, options));
  ASSIGN_OR_RETURN(model.info, engine.Info(model.handle));
  ASSIGN_OR_RETURN(model.tokenizer, engine.GetTokenizer(model.handle));
  return model;
}

absl::StatusOr<std::unique_ptr<ModelSource>> OpenLocalSource(absl::string_view path) {
  ASSIGN_OR_RETURN(OpenedModel opened, Open(path));
  return std::move(opened.source);
}

void AddPrecision(CLI::App& app, const std::string& name, const std::string& of_what,
                  Precision& precision) {
  static const std::map<std::string, Precision> kNames = {{"mixed", Precision::kMixed},
                                                          {"int8", Precision::kInt8},
                                                          {"int16", Precision::kInt16},
                                                          {"float", Precision::kFloat}};
  app.add_option_function<std::string>(
         name, [&precision](const std::string& value) { precision = kNames.at(value); },
         "activations: int8 or int16 in groups, float, or int8 but int16 in first and last block "
         "and head; " +
             of_what)
      ->check(CLI::IsMember({"mixed", "int8", "int16", "float"}))
      ->default_str("mixed");
}

void AddKvCacheType(CLI::App& app, KvCacheType& type) {
  app.add_option_function<std::string>(
         "--kv-cache", [&type](const std::string& value) { type = *ParseKvCacheType(value); },
         "what keys and values are kept as")
      ->check(CLI::IsMember({"float16", "int8", "int4"}))
      ->default_str("float16");
}

}  // namespace quern::cli

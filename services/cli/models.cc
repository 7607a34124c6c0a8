// `quern models`: load, unload, list, alias, unalias.

#include <absl/strings/ascii.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_format.h>
#include <absl/strings/str_join.h>
#include <absl/strings/strip.h>
#include <absl/time/clock.h>
#include <quern/inference/v1/inference_service.grpc.pb.h>

#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/base/status_macros.h"
#include "core/engine/model_source.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/job_view.h"

namespace quern::cli {
namespace {

namespace inference_pb = inference::v1;

struct ModelsOptions {
  std::string id;
  std::string artifact;
  std::string checkpoint;
  std::string kv_cache;
  int max_guesses = 0;
  std::string draft;
  bool no_wait = false;
  bool force = false;
  std::string alias;
  std::string expected_model;
};

std::string DescribeSource(const inference_pb::Model& model) {
  if (model.source_case() == inference_pb::Model::kCheckpoint) {
    return absl::StrCat("checkpoint ", model.checkpoint());
  }
  return absl::StrCat("artifact ",
                      std::string(absl::StripPrefix(model.artifact(), "artifacts/")).substr(0, 12));
}

// "int8" and the like; empty: the server's choice.
inference_pb::Model::KvCacheType ParseKvCache(const std::string& name) {
  auto type = inference_pb::Model::KV_CACHE_TYPE_UNSPECIFIED;
  inference_pb::Model::KvCacheType_Parse(absl::AsciiStrToUpper(name), &type);
  return type;
}

// ", KV cache of int8 (KL to half floats 0.0002)"; nothing for half floats.
std::string DescribeKvCache(const inference_pb::Model& model) {
  if (model.kv_cache_type() <= inference_pb::Model::FLOAT16) return "";
  return absl::StrCat(
      ", KV cache of ",
      absl::AsciiStrToLower(inference_pb::Model::KvCacheType_Name(model.kv_cache_type())),
      model.has_kv_cache_kl() ? absl::StrFormat(" (KL to half floats %.2g)", model.kv_cache_kl())
                              : "");
}

// ", speculating 4 tokens ahead by prompt lookup"; nothing for a model that does not.
std::string DescribeSpeculation(const inference_pb::Model& model) {
  if (!model.has_speculation()) return "";
  const std::string& draft = model.speculation().draft_artifact();
  return absl::StrCat(
      ", speculating ", model.speculation().max_guesses(), " tokens ahead by ",
      draft.empty()
          ? "prompt lookup"
          : absl::StrCat("artifact ", absl::StripPrefix(draft, "artifacts/").substr(0, 12)));
}

absl::Status ListModels(Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  inference_pb::ListModelsRequest request;
  request.set_page_size(1000);
  grpc::ClientContext call;
  inference_pb::ListModelsResponse response;
  RETURN_IF_ERROR(CallStatus(
      inference_pb::ModelService::NewStub(channel)->ListModels(&call, request, &response)));
  if (context.json()) return PrintJson(response);
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "STATE", "SOURCE", "MEMORY", "SINCE", "ALIASES"}};
  for (const auto& model : response.models()) {
    rows.push_back({std::string(absl::StripPrefix(model.name(), "models/")),
                    inference_pb::Model::State_Name(model.state()), DescribeSource(model),
                    FormatBytes(model.memory_bytes()), FormatLocalTime(ToTime(model.create_time())),
                    absl::StrJoin(model.aliases(), " ", [](std::string* out, const auto& alias) {
                      absl::StrAppend(out, absl::StripPrefix(alias, "aliases/"));
                    })});
    if (!model.failure_message().empty()) rows.push_back({"", "", model.failure_message()});
  }
  std::cout << FormatTable(rows, {false, false, false, true, false, false});
  return absl::OkStatus();
}

// Asks until the model is loaded or has failed.
absl::StatusOr<inference_pb::Model> WaitUntilLoaded(inference_pb::ModelService::Stub& stub,
                                                    inference_pb::Model model,
                                                    const Interrupt& interrupt) {
  absl::Duration pause = absl::Milliseconds(20);
  while (model.state() == inference_pb::Model::LOADING) {
    if (interrupt.interrupted()) {
      return absl::CancelledError(
          absl::StrCat("no longer waiting; ", model.name(), " goes on loading"));
    }
    absl::SleepFor(pause);
    pause = std::min(pause * 2, absl::Seconds(1));
    inference_pb::GetModelRequest request;
    request.set_name(model.name());
    grpc::ClientContext call;
    RETURN_IF_ERROR(CallStatus(stub.GetModel(&call, request, &model)));
  }
  return model;
}

absl::Status Load(const ModelsOptions& options, Context& context, Interrupt& interrupt) {
  if (options.artifact.empty() == options.checkpoint.empty()) {
    return absl::InvalidArgumentError("give either an artifact or --checkpoint");
  }
  if (!options.no_wait) interrupt.Watch();
  inference_pb::CreateModelRequest request;
  request.set_model_id(options.id);
  if (!options.checkpoint.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_model()->mutable_checkpoint(),
                     context.BelowRoot(options.checkpoint, "model_root"));
  } else {
    ASSIGN_OR_RETURN(auto jobs, context.Jobs());
    ASSIGN_OR_RETURN(*request.mutable_model()->mutable_artifact(),
                     ResolveArtifact(*jobs, options.artifact));
  }
  request.mutable_model()->set_kv_cache_type(ParseKvCache(options.kv_cache));
  if (options.max_guesses > 0) {
    auto& speculation = *request.mutable_model()->mutable_speculation();
    speculation.set_max_guesses(options.max_guesses);
    if (!options.draft.empty()) {
      ASSIGN_OR_RETURN(auto jobs, context.Jobs());
      ASSIGN_OR_RETURN(*speculation.mutable_draft_artifact(),
                       ResolveArtifact(*jobs, options.draft));
    }
  }
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  auto stub = inference_pb::ModelService::NewStub(channel);
  inference_pb::Model model;
  grpc::ClientContext call;
  RETURN_IF_ERROR(CallStatus(stub->CreateModel(&call, request, &model)));
  if (!options.no_wait) {
    const absl::Time start = absl::Now();
    ASSIGN_OR_RETURN(model, WaitUntilLoaded(*stub, std::move(model), interrupt));
    if (model.state() == inference_pb::Model::FAILED) {
      return absl::FailedPreconditionError(
          absl::StrCat(model.name(), ": ", model.failure_message()));
    }
    if (!context.json()) {
      std::cout << model.name() << "  " << DescribeSource(model) << ", "
                << FormatBytes(model.memory_bytes()) << DescribeKvCache(model)
                << DescribeSpeculation(model) << ", loaded in "
                << absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Milliseconds(1)))
                << std::endl;
      return absl::OkStatus();
    }
  }
  if (context.json()) return PrintJson(model);
  std::cout << model.name() << "  " << inference_pb::Model::State_Name(model.state()) << std::endl;
  return absl::OkStatus();
}

absl::Status Unload(const ModelsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  inference_pb::DeleteModelRequest request;
  request.set_name(ResourceName("models", options.id));
  request.set_force(options.force);
  grpc::ClientContext call;
  google::protobuf::Empty empty;
  RETURN_IF_ERROR(CallStatus(
      inference_pb::ModelService::NewStub(channel)->DeleteModel(&call, request, &empty)));
  if (context.json()) return PrintJson(empty);
  std::cout << request.name() << "  unloaded\n";
  return absl::OkStatus();
}

// The etag of the alias when it stands for the model that the user expects. FAILED_PRECONDITION.
absl::StatusOr<std::string> ExpectedEtag(inference_pb::ModelService::Stub& stub,
                                         const std::string& alias, const std::string& model) {
  inference_pb::GetAliasRequest request;
  request.set_name(alias);
  grpc::ClientContext call;
  inference_pb::Alias found;
  RETURN_IF_ERROR(CallStatus(stub.GetAlias(&call, request, &found)));
  if (found.model() == ResourceName("models", model)) return found.etag();
  return absl::FailedPreconditionError(
      absl::StrCat(alias, " stands for ", found.model(), ", not for the expected model"));
}

absl::Status SetAlias(const ModelsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  auto stub = inference_pb::ModelService::NewStub(channel);
  inference_pb::UpdateAliasRequest request;
  request.set_allow_missing(true);
  request.mutable_alias()->set_name(ResourceName("aliases", options.alias));
  request.mutable_alias()->set_model(ResourceName("models", options.id));
  if (!options.expected_model.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_alias()->mutable_etag(),
                     ExpectedEtag(*stub, request.alias().name(), options.expected_model));
  }
  grpc::ClientContext call;
  inference_pb::Alias alias;
  RETURN_IF_ERROR(CallStatus(stub->UpdateAlias(&call, request, &alias)));
  if (context.json()) return PrintJson(alias);
  std::cout << alias.name() << "  " << alias.model() << std::endl;
  return absl::OkStatus();
}

absl::Status RemoveAlias(const ModelsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Inference());
  inference_pb::DeleteAliasRequest request;
  request.set_name(ResourceName("aliases", options.alias));
  grpc::ClientContext call;
  google::protobuf::Empty empty;
  RETURN_IF_ERROR(CallStatus(
      inference_pb::ModelService::NewStub(channel)->DeleteAlias(&call, request, &empty)));
  if (context.json()) return PrintJson(empty);
  std::cout << request.name() << "  removed\n";
  return absl::OkStatus();
}

void AddAliases(CLI::App& models, const std::shared_ptr<ModelsOptions>& options, Command& command) {
  CLI::App* alias =
      models.add_subcommand("alias", "Point a second name to a model; what runs is not disturbed");
  alias->add_option("alias", options->alias, "the second name, [a-z0-9-]")->required();
  alias->add_option("model", options->id, "the model that it is to stand for")->required();
  alias->add_option("--expect", options->expected_model,
                    "only if the alias stands for this model until now");
  alias->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return SetAlias(*options, context); };
  });

  CLI::App* unalias = models.add_subcommand("unalias", "Take a second name away");
  unalias->add_option("alias", options->alias, "the second name")->required();
  unalias->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return RemoveAlias(*options, context); };
  });
}

}  // namespace

void AddModels(CLI::App& app, Command& command) {
  auto options = std::make_shared<ModelsOptions>();
  CLI::App* models = app.add_subcommand("models", "Models that quern-inference holds in memory");
  models->require_subcommand(1);
  models->fallthrough();

  models->add_subcommand("list", "All of them")->callback([&command] {
    command = [](Context& context, Interrupt&) { return ListModels(context); };
  });

  CLI::App* load = models->add_subcommand("load", "Load an artifact, or a checkpoint as it is");
  load->add_option("model", options->id, "the name to serve it under, [a-z0-9-]")->required();
  load->add_option("artifact", options->artifact, "name, id, or the start of an id");
  load->add_option(
      "--checkpoint", options->checkpoint,
      "Hugging Face directory, .gguf file or artifact directory below the service's --model-root");
  load->add_option("--kv-cache", options->kv_cache,
                   "what keys and values are kept as (the service's --kv-cache-type)")
      ->check(CLI::IsMember({"float16", "int8", "int4"}));
  CLI::Option* speculate =
      load->add_option("--speculate", options->max_guesses,
                       "guess so many tokens ahead, by prompt lookup or --draft; same answers, "
                       "sooner where few requests run")
          ->check(CLI::Range(1, kMaxGuesses));
  load->add_option("--draft", options->draft,
                   "artifact of the same tokenizer that guesses: fewer bits, or a smaller model")
      ->needs(speculate);
  load->add_flag("--no-wait", options->no_wait, "return while it is loading");
  load->callback([options, &command] {
    command = [options](Context& context, Interrupt& interrupt) {
      return Load(*options, context, interrupt);
    };
  });

  CLI::App* unload = models->add_subcommand("unload", "Let running requests finish, then free it");
  unload->add_option("model", options->id, "the name it is served under")->required();
  unload->add_flag("--force", options->force, "take its aliases away too");
  unload->callback([options, &command] {
    command = [options](Context& context, Interrupt&) { return Unload(*options, context); };
  });

  AddAliases(*models, options, command);
}

}  // namespace quern::cli

// `quern artifacts`: list, get, export, import, delete.

#include <absl/cleanup/cleanup.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <quern/artifact/v1/artifact_service.grpc.pb.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "core/artifact/artifact.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/convert/export.h"
#include "core/convert/import.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/job_view.h"

namespace quern::cli {
namespace {

namespace artifact_pb = artifact::v1;

struct ArtifactsOptions {
  std::string artifact;
  std::string directory;
  std::string form = "quern";
  std::string source;
  int embedding_bits = 16;
  int limit = 20;
};

std::string DescribeFormat(const artifact_pb::Artifact& artifact) {
  // A service of an earlier version does not say.
  const double bits = artifact.mean_bits() > 0 ? artifact.mean_bits() : artifact.format().bits();
  return FormatQuantization(bits, artifact.format().group_size(), artifact.format().symmetric());
}

absl::StatusOr<artifact_pb::Artifact> GetArtifact(const ArtifactsOptions& options,
                                                  const std::shared_ptr<grpc::Channel>& channel) {
  artifact_pb::GetArtifactRequest request;
  ASSIGN_OR_RETURN(*request.mutable_name(), ResolveArtifact(*channel, options.artifact));
  grpc::ClientContext call;
  artifact_pb::Artifact artifact;
  RETURN_IF_ERROR(CallStatus(
      artifact_pb::ArtifactService::NewStub(channel)->GetArtifact(&call, request, &artifact)));
  return artifact;
}

absl::Status ListArtifacts(const ArtifactsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  artifact_pb::ListArtifactsRequest request;
  request.set_page_size(options.limit);
  grpc::ClientContext call;
  artifact_pb::ListArtifactsResponse response;
  RETURN_IF_ERROR(CallStatus(
      artifact_pb::ArtifactService::NewStub(channel)->ListArtifacts(&call, request, &response)));
  if (context.json()) return PrintJson(response);
  std::vector<std::vector<std::string>> rows = {
      {"ARTIFACT", "FORMAT", "SIZE", "CREATED", "JOB", "BASE"}};
  for (const auto& artifact : response.artifacts()) {
    rows.push_back(
        {std::string(absl::StripPrefix(artifact.name(), "artifacts/")).substr(0, 12),
         DescribeFormat(artifact), FormatBytes(artifact.size_bytes()),
         FormatLocalTime(ToTime(artifact.create_time())), artifact.lineage().job(),
         std::string(absl::StripPrefix(artifact.lineage().base(), "artifacts/")).substr(0, 12)});
  }
  std::cout << FormatTable(rows, {false, false, true, false, false, false});
  return absl::OkStatus();
}

absl::Status ShowArtifact(const ArtifactsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  ASSIGN_OR_RETURN(const artifact_pb::Artifact artifact, GetArtifact(options, channel));
  if (context.json()) return PrintJson(artifact);
  std::cout << "artifact     " << artifact.name() << "\n"
            << "format       " << DescribeFormat(artifact) << ", embedding and head "
            << artifact.format().embedding_bits() << " bits\n"
            << "created      " << FormatLocalTime(ToTime(artifact.create_time())) << "\n"
            << "job          " << artifact.lineage().job() << "\n"
            << "base         " << artifact.lineage().base() << "\n"
            << "checkpoint   " << artifact.lineage().checkpoint_digest() << "\n"
            << "calibration  " << artifact.lineage().calibration_digest() << "\n"
            << "made by      quern " << artifact.lineage().quern_version() << "\n\n";
  std::vector<std::vector<std::string>> rows = {{"FILE", "SIZE", "SHA-256"}};
  for (const auto& file : artifact.files()) {
    rows.push_back({file.path(), FormatBytes(file.size_bytes()), file.sha256()});
  }
  std::cout << FormatTable(rows, {false, true, false});
  return absl::OkStatus();
}

absl::Status Download(artifact_pb::ArtifactService::Stub& stub, const std::string& artifact,
                      const std::string& path, const std::string& destination) {
  artifact_pb::ReadArtifactFileRequest request;
  request.set_name(artifact);
  request.set_path(path);
  grpc::ClientContext call;
  auto stream = stub.ReadArtifactFile(&call, request);
  std::ofstream file(destination, std::ios::binary | std::ios::trunc);
  artifact_pb::ReadArtifactFileResponse response;
  while (stream->Read(&response)) file << response.chunk();
  RETURN_IF_ERROR(CallStatus(stream->Finish()));
  file.close();
  if (!file) return absl::ErrnoToStatus(errno, destination);
  return SyncFile(destination);
}

// Downloads and verifies an artifact into the new directory `partial`.
absl::StatusOr<VerifiedArtifact> DownloadVerified(artifact_pb::ArtifactService::Stub& stub,
                                                  const artifact_pb::Artifact& artifact,
                                                  const std::string& partial) {
  for (const auto& file : artifact.files()) {
    // The service is trusted with the bytes no more than a stranger: names must be plain.
    if (file.path().find('/') != std::string::npos || file.path().empty() ||
        file.path()[0] == '.') {
      return absl::DataLossError(absl::StrCat("artifact names a file \"", file.path(), "\""));
    }
    RETURN_IF_ERROR(
        Download(stub, artifact.name(), file.path(), absl::StrCat(partial, "/", file.path())));
  }
  return VerifyArtifact(partial, absl::StripPrefix(artifact.name(), "artifacts/"));
}

// Writes the model of the artifact in `source` in another form into the new directory `target`.
absl::Status Convert(const VerifiedArtifact& verified, const std::string& form,
                     const std::string& source, const std::string& target) {
  if (!verified.manifest.base.empty()) {
    // What a scale delta's tensors mean, its base says.
    return absl::FailedPreconditionError(absl::StrCat(
        "this is a scale delta, no whole model; export its base ", verified.manifest.base));
  }
  ASSIGN_OR_RETURN(const LoadedArtifact loaded, LoadArtifact(source, verified.id));
  RETURN_IF_ERROR(CreateDirectories(target));
  ExportForm export_form = ExportForm::kHuggingFace;
  if (form == "gptq") export_form = ExportForm::kGptqV2;
  if (form == "gguf") export_form = ExportForm::kGguf;
  return ExportModel(loaded.model, export_form, target);
}

// An artifact of the store, or one that lies in a directory here.
absl::Status Export(const ArtifactsOptions& options, Context& context) {
  const std::string directory(absl::StripSuffix(options.directory, "/"));
  if (std::filesystem::exists(directory)) {
    return absl::AlreadyExistsError(absl::StrCat(directory, ": exists; name a new directory"));
  }
  // Under another name until it is whole and verified.
  const std::string partial = absl::StrCat(directory, ".partial");
  RETURN_IF_ERROR(RemoveTree(partial));
  RETURN_IF_ERROR(CreateDirectories(partial));
  const absl::Cleanup remove = [&partial] { RemoveTree(partial).IgnoreError(); };
  const bool as_it_is = options.form == "quern";
  std::string made = absl::StrCat(partial, "/converted");
  artifact_pb::Artifact artifact;
  const std::string manifest = absl::StrCat(options.artifact, "/", kManifestName);
  if (std::filesystem::exists(manifest)) {
    if (as_it_is) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.artifact,
                       ": is an artifact's directory already; wanted --as gptq, gguf or "
                       "huggingface"));
    }
    ASSIGN_OR_RETURN(const VerifiedArtifact verified, VerifyArtifact(options.artifact));
    RETURN_IF_ERROR(Convert(verified, options.form, options.artifact, made));
    artifact.set_name(absl::StrCat("artifacts/", verified.id));
  } else {
    ASSIGN_OR_RETURN(auto channel, context.Jobs());
    ASSIGN_OR_RETURN(artifact, GetArtifact(options, channel));
    auto stub = artifact_pb::ArtifactService::NewStub(channel);
    ASSIGN_OR_RETURN(const VerifiedArtifact verified, DownloadVerified(*stub, artifact, partial));
    if (as_it_is) {
      made = partial;
    } else {
      RETURN_IF_ERROR(Convert(verified, options.form, partial, made));
    }
  }
  std::error_code error;
  std::filesystem::rename(made, directory, error);
  if (error) return absl::ErrnoToStatus(error.value(), directory);
  if (context.json()) return PrintJson(artifact);
  std::cout << directory << "  "
            << (as_it_is ? FormatBytes(artifact.size_bytes())
                         : absl::StrCat("written as ", options.form))
            << ", verified\n";
  return absl::OkStatus();
}

// Local: an artifact directory out of a checkpoint that another program quantized.
absl::Status Import(const ArtifactsOptions& options, Context& context) {
  const std::string directory(absl::StripSuffix(options.directory, "/"));
  if (std::filesystem::exists(directory)) {
    return absl::AlreadyExistsError(absl::StrCat(directory, ": exists; name a new directory"));
  }
  ASSIGN_OR_RETURN(const ImportedModel imported,
                   ImportModel(options.source, options.embedding_bits));
  const std::string partial = absl::StrCat(directory, ".partial");
  RETURN_IF_ERROR(RemoveTree(partial));
  const absl::Cleanup remove = [&partial] { RemoveTree(partial).IgnoreError(); };
  const Lineage lineage{
      .checkpoint_digest = imported.source_hex,
      .task_digest = Sha256Hex(absl::StrCat("import ", imported.form, "\n")),
      .quern_version = QUERN_VERSION,
  };
  ASSIGN_OR_RETURN(const std::string id, WriteArtifact(imported.model, lineage, partial));
  std::error_code error;
  std::filesystem::rename(partial, directory, error);
  if (error) return absl::ErrnoToStatus(error.value(), directory);
  const QuantFormat& format = imported.model.format;
  if (context.json()) {
    std::cout << Json{{"artifact", id},
                      {"directory", directory},
                      {"form", imported.form},
                      {"bits", format.bits},
                      {"groupSize", format.group_size},
                      {"symmetric", format.symmetric},
                      {"roundedScales", imported.num_rounded_scales}}
                     .dump()
              << std::endl;
    return absl::OkStatus();
  }
  std::cout << directory << "  " << imported.form << ", w" << format.bits << " g"
            << format.group_size << (format.symmetric ? " symmetric" : "") << ", "
            << FormatBytes(imported.model.weight_bytes()) << "\n";
  if (imported.num_rounded_scales > 0) {
    std::cout << FormatCount(imported.num_rounded_scales)
              << " scales were rounded to half floats, by at most 0.05 %\n";
  }
  return absl::OkStatus();
}

absl::Status DeleteArtifact(const ArtifactsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  artifact_pb::DeleteArtifactRequest request;
  ASSIGN_OR_RETURN(*request.mutable_name(), ResolveArtifact(*channel, options.artifact));
  grpc::ClientContext call;
  google::protobuf::Empty empty;
  RETURN_IF_ERROR(CallStatus(
      artifact_pb::ArtifactService::NewStub(channel)->DeleteArtifact(&call, request, &empty)));
  if (context.json()) return PrintJson(empty);
  std::cout << request.name() << "  deleted\n";
  return absl::OkStatus();
}

}  // namespace

void AddArtifacts(CLI::App& app, Command& command) {
  auto options = std::make_shared<ArtifactsOptions>();
  CLI::App* artifacts = app.add_subcommand("artifacts", "Quantized models in the store");
  artifacts->require_subcommand(1);
  artifacts->fallthrough();
  const auto add = [&](const char* name, const char* help, auto function) {
    CLI::App* sub = artifacts->add_subcommand(name, help);
    sub->callback([options, &command, function] {
      command = [options, function](Context& context, Interrupt&) {
        return function(*options, context);
      };
    });
    return sub;
  };
  const auto add_name = [&](CLI::App* sub) {
    sub->add_option("artifact", options->artifact, "name, id, or the start of an id")->required();
    return sub;
  };
  add("list", "Newest first", ListArtifacts)
      ->add_option("--limit", options->limit, "at most this many")
      ->check(CLI::Range(1, 1000));
  add_name(add("get", "One artifact with its files and lineage", ShowArtifact));
  CLI::App* get = add("export", "Write the files to a new directory, verified", Export);
  get->add_option("artifact", options->artifact,
                  "name, id, or the start of an id; or a directory with an artifact")
      ->required();
  get->add_option("directory", options->directory, "to be made")->required();
  get->add_option(
         "--as", options->form,
         "quern: as it is; gptq: a GPTQ v2 checkpoint, the codes bit for bit; huggingface: a "
         "checkpoint of floats; gguf: a model.gguf with the same values")
      ->check(CLI::IsMember({"quern", "gptq", "huggingface", "gguf"}))
      ->capture_default_str();
  CLI::App* import =
      add("import",
          "Make a directory like export's from a GPTQ or EfficientQAT checkpoint, locally", Import);
  import->add_option("checkpoint", options->source, "Hugging Face directory")->required();
  import->add_option("directory", options->directory, "to be made")->required();
  import
      ->add_option("--embedding-bits", options->embedding_bits,
                   "of embedding and head, which these forms keep dense")
      ->check(CLI::IsMember({4, 8, 16}))
      ->capture_default_str();
  add_name(add("delete", "Remove an artifact from the store", DeleteArtifact));
}

}  // namespace quern::cli

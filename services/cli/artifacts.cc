// `quern artifacts`: list, get, export, delete.

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
#include "core/base/status_macros.h"
#include "services/cli/commands.h"
#include "services/cli/format.h"
#include "services/cli/job_view.h"

namespace quern::cli {
namespace {

namespace artifact_pb = artifact::v1;

struct ArtifactsOptions {
  std::string artifact;
  std::string directory;
  int limit = 20;
};

std::string DescribeFormat(const artifact_pb::QuantizationFormat& format) {
  return absl::StrCat("w", format.bits(), " g", format.group_size(),
                      format.symmetric() ? " symmetric" : "");
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
         DescribeFormat(artifact.format()), FormatBytes(artifact.size_bytes()),
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
            << "format       " << DescribeFormat(artifact.format()) << ", embedding and head "
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

absl::Status Export(const ArtifactsOptions& options, Context& context) {
  ASSIGN_OR_RETURN(auto channel, context.Jobs());
  ASSIGN_OR_RETURN(const artifact_pb::Artifact artifact, GetArtifact(options, channel));
  if (std::filesystem::exists(options.directory)) {
    return absl::AlreadyExistsError(
        absl::StrCat(options.directory, ": exists; name a new directory"));
  }
  // Under another name until it is whole and verified.
  const std::string partial = absl::StrCat(options.directory, ".partial");
  RETURN_IF_ERROR(RemoveTree(partial));
  RETURN_IF_ERROR(CreateDirectories(partial));
  auto stub = artifact_pb::ArtifactService::NewStub(channel);
  for (const auto& file : artifact.files()) {
    // The service is trusted with the bytes no more than a stranger: names must be plain.
    if (file.path().find('/') != std::string::npos || file.path().empty() ||
        file.path()[0] == '.') {
      return absl::DataLossError(absl::StrCat("artifact names a file \"", file.path(), "\""));
    }
    RETURN_IF_ERROR(
        Download(*stub, artifact.name(), file.path(), absl::StrCat(partial, "/", file.path())));
  }
  const absl::string_view id = absl::StripPrefix(artifact.name(), "artifacts/");
  ASSIGN_OR_RETURN(const VerifiedArtifact verified, VerifyArtifact(partial, id));
  // What a scale delta's tensors mean, its base says.
  if (verified.manifest.base.empty()) RETURN_IF_ERROR(LoadArtifact(partial, id).status());
  std::error_code error;
  std::filesystem::rename(partial, options.directory, error);
  if (error) return absl::ErrnoToStatus(error.value(), options.directory);
  if (context.json()) return PrintJson(artifact);
  std::cout << options.directory << "  " << FormatBytes(artifact.size_bytes()) << ", verified\n";
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
  add_name(add("export", "Write the files to a new directory, verified", Export))
      ->add_option("directory", options->directory, "to be made")
      ->required();
  add_name(add("delete", "Remove an artifact from the store", DeleteArtifact));
}

}  // namespace quern::cli

#ifndef QUERN_TESTS_SERVICES_COMMON_POLICY_WALK_H_
#define QUERN_TESTS_SERVICES_COMMON_POLICY_WALK_H_

#include <absl/strings/match.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "services/common/policy.h"
#include "services/common/status.h"
#include "tests/support/status_matchers.h"

namespace quern {

// Calls a method by name with one message in wire format, whatever the method's kind; `token` "":
// none. The wire format of the one message that comes back.
inline absl::StatusOr<std::string> CallByName(const std::shared_ptr<grpc::Channel>& channel,
                                              const std::string& method, const std::string& request,
                                              const std::string& token) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  const grpc::Slice slice(request);
  const grpc::ByteBuffer sent(&slice, 1);
  grpc::ByteBuffer received;
  grpc::Status status;
  grpc::CompletionQueue queue;
  auto call = stub.PrepareUnaryCall(&context, method, sent, &queue);
  call->StartCall();
  call->Finish(&received, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return FromGrpcStatus(status);
  grpc::Slice answer;
  EXPECT_TRUE(received.DumpToSingleSlice(&answer).ok());
  return std::string(reinterpret_cast<const char*>(answer.begin()), answer.size());
}

// The names of all services that a server has registered, as its reflection tells.
inline std::vector<std::string> ReflectedServices(const std::shared_ptr<grpc::Channel>& channel,
                                                  const std::string& token) {
  // ServerReflectionRequest{list_services: ""}; the answer's field 6 holds services {1: name}.
  const absl::StatusOr<std::string> answer =
      CallByName(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                 std::string("\x3a\x00", 2), token);
  EXPECT_OK(answer);
  std::vector<std::string> names;
  google::protobuf::UnknownFieldSet fields;
  if (!answer.ok() || !fields.ParseFromString(*answer)) return names;
  for (int i = 0; i < fields.field_count(); ++i) {
    if (fields.field(i).number() != 6) continue;
    google::protobuf::UnknownFieldSet list;
    EXPECT_TRUE(list.ParseFromString(fields.field(i).length_delimited()));
    for (int j = 0; j < list.field_count(); ++j) {
      google::protobuf::UnknownFieldSet service;
      EXPECT_TRUE(service.ParseFromString(list.field(j).length_delimited()));
      names.push_back(service.field(0).length_delimited());
    }
  }
  return names;
}

// Walks all RPCs of a server whose clients need a token: each has a row in the policy, answers
// UNAUTHENTICATED to no token and to a wrong one, and PERMISSION_DENIED to `other_token`, which has
// `other_role`, where its row says so. Returns how many there are.
inline int ExpectEachRpcIsGuarded(const std::shared_ptr<grpc::Channel>& channel,
                                  const std::string& other_token, Role other_role) {
  int num_methods = 0;
  for (const std::string& service : ReflectedServices(channel, other_token)) {
    if (absl::StartsWith(service, "grpc.")) continue;  // gRPC's own: health and reflection
    const auto* descriptor =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(service);
    EXPECT_NE(descriptor, nullptr) << service;
    for (int i = 0; descriptor != nullptr && i < descriptor->method_count(); ++i) {
      ++num_methods;
      const std::string method =
          absl::StrCat("/", service, "/", std::string(descriptor->method(i)->name()));
      const PolicyRow* row = FindRpcPolicy(method);
      EXPECT_NE(row, nullptr) << method << " has no row in services/common/policy.cc";
      EXPECT_TRUE(row == nullptr || !row->roles.empty()) << method << " is open to all";
      for (const std::string& token : {std::string(), std::string("quern_wrong")}) {
        EXPECT_THAT(CallByName(channel, method, "", token),
                    StatusIs(absl::StatusCode::kUnauthenticated, testing::_))
            << method;
      }
      if (row == nullptr || row->roles.Intersects({other_role})) continue;
      EXPECT_THAT(CallByName(channel, method, "", other_token),
                  StatusIs(absl::StatusCode::kPermissionDenied, testing::_))
          << method;
    }
  }
  // No service, and no method of one that is there.
  EXPECT_THAT(CallByName(channel, "/quern.Nothing/Nothing", "", ""),
              StatusIs(absl::StatusCode::kUnauthenticated, testing::_));
  EXPECT_THAT(CallByName(channel, "/quern.Nothing/Nothing", "", other_token),
              StatusIs(absl::StatusCode::kPermissionDenied, testing::_));
  return num_methods;
}

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_COMMON_POLICY_WALK_H_

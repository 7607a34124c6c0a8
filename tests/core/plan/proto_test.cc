// The proto's QuantizeTask and core/plan's Task are the same fields: each field that the descriptor
// has, set alone, must be taken by ParseTask and must change what it returns.

#include <google/protobuf/util/json_util.h>
#include <quern/quantization/v1/quantization_service.pb.h>

#include <functional>

#include "core/plan/task.h"
#include "core/plan/tune_task.h"
#include "tests/support/status_matchers.h"

namespace quern {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using quantization::v1::QuantizeTask;
using testing::HasSubstr;

QuantizeTask Minimal() {
  QuantizeTask task;
  task.mutable_checkpoint()->set_path("model");
  task.mutable_format()->set_bits(2);
  return task;
}

std::string ToJson(const Message& message, bool proto_names, bool enum_numbers) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = proto_names;
  options.always_print_enums_as_ints = enum_numbers;
  std::string json;
  EXPECT_TRUE(google::protobuf::util::MessageToJsonString(message, &json, options).ok());
  return json;
}

// Gives a scalar field a value that every field of its type and name takes and none has by default.
void SetField(Message& message, const FieldDescriptor& field) {
  const auto& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection.SetInt32(&message, &field, 32);
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection.SetInt64(&message, &field, int64_t{1} << 60);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.SetDouble(&message, &field, 0.125);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.SetBool(&message, &field, true);
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.SetEnumValue(&message, &field, 1);
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection.SetString(
          &message, &field, field.name() == "digest" ? std::string(64, 'a') : "folder/file.txt");
    default:
      FAIL() << field.full_name() << " has a type this test does not know: " << field.type_name();
  }
}

// Calls `visit(task, name)` with a minimal task for every scalar field below QuantizeTask set.
void ForEachField(const std::function<void(const QuantizeTask&, const std::string&)>& visit) {
  const auto* descriptor = QuantizeTask::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor& field = *descriptor->field(i);
    if (field.name() == "resolved") continue;
    if (field.message_type() == nullptr) {
      QuantizeTask task = Minimal();
      SetField(task, field);
      visit(task, field.full_name());
      continue;
    }
    for (int j = 0; j < field.message_type()->field_count(); ++j) {
      const FieldDescriptor& nested = *field.message_type()->field(j);
      QuantizeTask task = Minimal();
      Message* message = task.GetReflection()->MutableMessage(&task, &field);
      // What a set message requires.
      if (const auto* path = field.message_type()->FindFieldByName("path"); path != nullptr) {
        message->GetReflection()->SetString(message, path, "model.txt");
      }
      SetField(*message, nested);
      visit(task, nested.full_name());
    }
  }
}

TEST(ProtoTest, EveryFieldOfQuantizeTaskIsParsed) {
  int num_fields = 0;
  ForEachField([&](const QuantizeTask& task, const std::string& name) {
    SCOPED_TRACE(name);
    ++num_fields;
    ASSERT_OK_AND_ASSIGN(const Task minimal, ParseTask(ToJson(Minimal(), false, false)));
    ASSERT_OK_AND_ASSIGN(const Task parsed, ParseTask(ToJson(task, false, false)));
    EXPECT_NE(TaskToJson(parsed), TaskToJson(minimal)) << "the field has no effect";
    for (const auto& [proto_names, enum_numbers] :
         {std::pair(true, false), std::pair(false, true)}) {
      ASSERT_OK_AND_ASSIGN(const Task other, ParseTask(ToJson(task, proto_names, enum_numbers)));
      EXPECT_EQ(TaskToJson(other), TaskToJson(parsed));
    }
  });
  EXPECT_GT(num_fields, 20);
}

TEST(ProtoTest, EveryFieldOfTuneTaskIsParsed) {
  quantization::v1::TuneTask minimal;
  minimal.set_base("artifacts/" + std::string(64, 'b'));
  minimal.mutable_data()->set_path("chat.jsonl");
  ASSERT_OK_AND_ASSIGN(const TuneTask parsed, ParseTuneTask(ToJson(minimal, false, false)));
  int num_fields = 0;
  const auto expect_effect = [&](const quantization::v1::TuneTask& task, const std::string& name) {
    SCOPED_TRACE(name);
    ++num_fields;
    for (const bool proto_names : {false, true}) {
      ASSERT_OK_AND_ASSIGN(const TuneTask other, ParseTuneTask(ToJson(task, proto_names, false)));
      EXPECT_NE(TuneTaskToJson(other), TuneTaskToJson(parsed)) << "the field has no effect";
    }
  };
  const auto* descriptor = quantization::v1::TuneTask::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const FieldDescriptor& field = *descriptor->field(i);
    if (field.name() == "resolved") continue;
    quantization::v1::TuneTask task = minimal;
    if (field.name() == "base") {
      task.set_base("artifacts/" + std::string(64, 'c'));
      expect_effect(task, field.full_name());
    } else if (field.message_type() == nullptr) {
      SetField(task, field);
      expect_effect(task, field.full_name());
    } else {
      for (int j = 0; j < field.message_type()->field_count(); ++j) {
        task = minimal;
        Message* message = task.GetReflection()->MutableMessage(&task, &field);
        if (const auto* path = field.message_type()->FindFieldByName("path"); path != nullptr) {
          message->GetReflection()->SetString(message, path, "other.jsonl");
        }
        const FieldDescriptor& nested = *field.message_type()->field(j);
        if (nested.name() != "path") SetField(*message, nested);
        expect_effect(task, nested.full_name());
      }
    }
  }
  EXPECT_GT(num_fields, 10);
  quantization::v1::TuneTask task = minimal;
  task.mutable_resolved()->set_epoch_count(1);
  EXPECT_THAT(ParseTuneTask(ToJson(task, false, false)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("output only")));
}

TEST(ProtoTest, EveryEnumValueIsParsed) {
  const auto expect = [](const google::protobuf::EnumDescriptor& descriptor,
                         const std::function<void(QuantizeTask&, int)>& set) {
    for (int i = 0; i < descriptor.value_count(); ++i) {
      QuantizeTask task = Minimal();
      set(task, descriptor.value(i)->number());
      EXPECT_OK(ParseTask(ToJson(task, false, false))) << descriptor.value(i)->full_name();
      EXPECT_OK(ParseTask(ToJson(task, false, true))) << descriptor.value(i)->full_name();
    }
  };
  expect(*QuantizeTask::Method_descriptor(), [](QuantizeTask& task, int value) {
    task.set_method(static_cast<QuantizeTask::Method>(value));
  });
  expect(*QuantizeTask::Preset_descriptor(), [](QuantizeTask& task, int value) {
    task.set_preset(static_cast<QuantizeTask::Preset>(value));
  });
  expect(*quantization::v1::E2eQpSettings::Loss_descriptor(), [](QuantizeTask& task, int value) {
    task.mutable_e2e_qp()->set_loss(static_cast<quantization::v1::E2eQpSettings::Loss>(value));
  });
}

TEST(ProtoTest, ResolvedIsOutputOnly) {
  QuantizeTask task = Minimal();
  task.mutable_resolved()->mutable_block_ap()->set_epoch_count(1);
  EXPECT_THAT(ParseTask(ToJson(task, false, false)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("resolved is output only")));
}

}  // namespace
}  // namespace quern

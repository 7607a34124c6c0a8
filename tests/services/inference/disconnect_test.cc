// Clients of both fronts that go away at any moment: nothing of them stays.

#include <sys/socket.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "tests/services/inference/inference_fixture.h"
#include "tests/services/inference/openai_client.h"

namespace quern {
namespace {

// Where a client is when it goes. kSent may find it queued or in its prefill.
enum class Leaves { kBeforeTheEndOfItsRequest, kSent, kAfterTheFirstPiece, kAfterSomePieces };

class DisconnectTest : public InferenceServerTest {
 protected:
  static constexpr int kThreads = 8;
  static constexpr int kClientsOfAThread = 125;

  DisconnectTest() {
    // Few pages, so that they wait for each other's.
    config_.kv_cache_mib = 4;
    Start();
    LoadLong();
  }

  // A prompt that takes several steps, or one.
  static std::string Prompt(std::mt19937& random) {
    return std::string(random() % 2 == 0 ? 1'000 : 20, static_cast<char>('a' + random() % 20));
  }

  void LeaveGrpc(std::mt19937& random, Leaves when) {
    Context context;
    GenerateTextRequest request = Request(Prompt(random), 8'000, "long");
    request.set_ignore_end_of_text(true);
    const auto reader = inference_->StreamGenerateText(&context, request);
    GenerateTextResponse piece;
    if (when == Leaves::kAfterTheFirstPiece) reader->Read(&piece);
    if (when == Leaves::kAfterSomePieces) {
      for (int i = 0; i < 5; ++i) reader->Read(&piece);
    }
    context.TryCancel();
    while (reader->Read(&piece)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }

  void LeaveHttp(std::mt19937& random, Leaves when) {
    const Json body = {{"model", "long"},     {"prompt", Prompt(random)},
                       {"max_tokens", 8'000}, {"ignore_eos", true},
                       {"temperature", 0},    {"stream", random() % 4 != 0}};
    std::string bytes = PostBytes(kCompletions, body.dump());
    if (when == Leaves::kBeforeTheEndOfItsRequest) bytes.resize(random() % bytes.size());
    const int fd = ConnectTo(server_->http_address());
    ASSERT_EQ(send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
    if (body["stream"] == true && when >= Leaves::kAfterTheFirstPiece) {
      char buffer[4096];
      const int pieces = when == Leaves::kAfterSomePieces ? 5 : 1;
      for (int i = 0; i < pieces; ++i) EXPECT_GT(recv(fd, buffer, sizeof(buffer), 0), 0);
    }
    // Half of them reset the connection.
    const linger reset = {1, 0};
    if (random() % 2 == 0) setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    close(fd);
  }
};

TEST_F(DisconnectTest, AThousandClientsThatGoLeaveNothing) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([this, thread] {
      std::mt19937 random(thread);
      for (int i = 0; i < kClientsOfAThread; ++i) {
        const auto when = static_cast<Leaves>(random() % 4);
        if (thread % 2 == 0) {
          LeaveGrpc(random, when);
        } else {
          LeaveHttp(random, when);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(Eventually([&] {
    return Metric("quern_requests_running") == 0 && Metric("quern_requests_waiting") == 0;
  }));
  EXPECT_EQ(Metric("quern_kv_pages{state=\"used\"}"), 0);
  // None of them had an answer, whatever had been computed by then; it is counted as lost.
  EXPECT_EQ(Metric("quern_requests_total{model=\"long\",outcome=\"max_output_tokens\"}"), 0);
  EXPECT_GT(Metric("quern_requests_total{model=\"long\",outcome=\"cancelled\"}"), 500);
  EXPECT_GT(Metric("quern_discarded_tokens_total{model=\"long\",reason=\"cancelled\"}"), 0);
  GenerateTextRequest after = Request("Once", 20, "long");
  EXPECT_OK(Generate(after));
}

}  // namespace
}  // namespace quern

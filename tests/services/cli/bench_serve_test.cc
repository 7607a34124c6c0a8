// `quern bench serve`, and what it is made of.

#include "services/cli/load_prompts.h"
#include "services/cli/load_report.h"
#include "services/cli/openai_stream.h"
#include "tests/services/cli/cli_fixture.h"
#include "tests/services/cli/openai_server.h"

namespace quern {
namespace {

using cli::LoadOutcome;
using cli::LoadPrompts;
using cli::LoadRequest;
using cli::LoadSummary;
using cli::OpenAiStream;
using testing::HasSubstr;

// As llama-server sends it, with usage beside the last choice.
constexpr char kCompletion[] =
    "data: {\"choices\":[{\"text\":\" one\",\"index\":0,\"finish_reason\":null}]}\r\n\r\n"
    ": a comment\n"
    "data: {\"choices\":[{\"text\":\" \xe2\x82\xac\",\"index\":0,\"finish_reason\":null}]}\n\n"
    "event: x\ndata:{\"choices\":[{\"text\":\"\",\"index\":0,\"finish_reason\":\"length\"}],\n"
    "data: \"usage\":{\"completion_tokens\":4,\"prompt_tokens\":3,"
    "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\n"
    "data: [DONE]\n\n";

TEST(OpenAiStreamTest, BytesMayBeSplitAnywhere) {
  const absl::string_view bytes(kCompletion);
  for (size_t split = 0; split <= bytes.size(); ++split) {
    OpenAiStream stream;
    ASSERT_OK_AND_ASSIGN(const int before, stream.Feed(bytes.substr(0, split)));
    ASSERT_OK_AND_ASSIGN(const int after, stream.Feed(bytes.substr(split)));
    EXPECT_EQ(before + after, 2) << split;
    EXPECT_TRUE(stream.complete());
    EXPECT_EQ(stream.usage().output_tokens, 4);
    EXPECT_EQ(stream.usage().prompt_tokens, 3);
    EXPECT_EQ(stream.usage().cached_prompt_tokens, 1);
  }
}

TEST(OpenAiStreamTest, OnlyTextIsAPieceOfAChat) {
  OpenAiStream stream;
  const auto feed = [&](const std::string& choice) {
    return stream.Feed("data: {\"choices\":[" + choice + "]}\n\n").value();
  };
  EXPECT_EQ(feed(R"({"delta":{"role":"assistant","content":null}})"), 0);
  EXPECT_EQ(feed(R"({"delta":{"role":"assistant","content":""}})"), 0);
  EXPECT_EQ(feed(R"({"delta":{"reasoning_content":"Hm"}})"), 1);
  EXPECT_EQ(feed(R"({"delta":{"content":"Yes"}})"), 1);
  EXPECT_FALSE(stream.complete());
  EXPECT_EQ(feed(R"({"delta":{},"finish_reason":"stop"})"), 0);
  EXPECT_TRUE(stream.complete());
  EXPECT_EQ(stream.usage().output_tokens, -1);
}

TEST(OpenAiStreamTest, FaultsOfTheServerAreErrors) {
  const auto feed = [](const std::string& bytes) { return OpenAiStream().Feed(bytes).status(); };
  EXPECT_EQ(feed("data: {\"choices\":\n\n").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(feed("data: 7\n\n").code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(feed(std::string(2 << 20, 'x')).code(), absl::StatusCode::kDataLoss);
  const absl::Status busy =
      feed("data: {\"error\":{\"message\":\"full\",\"type\":\"rate_limit_error\"}}\n\n");
  EXPECT_EQ(busy.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(busy.message(), "full");
  EXPECT_EQ(feed("data: {\"error\":{\"message\":\"no slot\",\"code\":503}}\n\n").code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(feed("data: {\"error\":\"bad\"}\n\n").code(), absl::StatusCode::kInternal);
  // What is no stream of choices is no piece either.
  EXPECT_OK(feed("data: {\"choices\":[7,{\"delta\":3,\"text\":4}],\"usage\":[]}\n\n"));
}

LoadOutcome Answered(double first_token, double next_token, int tokens) {
  LoadOutcome outcome;
  outcome.first_token = first_token;
  outcome.next_token = next_token;
  outcome.usage.output_tokens = tokens;
  outcome.window_tokens = tokens;
  return outcome;
}

TEST(LoadReportTest, EveryOutcomeIsCountedOnceAndOnlyGoodOnesAreGood) {
  std::vector<LoadOutcome> outcomes = {Answered(0.1, 0.01, 10), Answered(0.3, 0.01, 10),
                                       Answered(0.1, 0.2, 10), Answered(0, 0, 0)};
  LoadOutcome refused;
  refused.status = absl::ResourceExhaustedError("full");
  refused.whole = 0.002;
  LoadOutcome given_up;
  given_up.status = absl::CancelledError("given up");
  given_up.whole = 9;
  LoadOutcome failed;
  failed.status = absl::UnavailableError("gone");
  outcomes.insert(outcomes.end(), {refused, refused, given_up, failed});
  const LoadSummary summary = cli::Summarize(outcomes, {.first_token = 0.2, .next_token = 0.05});
  EXPECT_EQ(summary.num_sent(), 8);
  EXPECT_EQ(summary.num_answered, 4);
  EXPECT_EQ(summary.num_refused, 2);
  EXPECT_EQ(summary.num_given_up, 1);
  EXPECT_EQ(summary.failures.at("UNAVAILABLE"), 1);
  EXPECT_EQ(summary.num_good, 1);
  EXPECT_DOUBLE_EQ(summary.good_share(), 0.125);
  EXPECT_DOUBLE_EQ(summary.window_tokens, 30);
  // Who was given up had waited at least so long; who was refused had not waited for a token.
  EXPECT_DOUBLE_EQ(cli::Percentile(summary.first, 1), 9);
  EXPECT_DOUBLE_EQ(cli::Percentile(summary.refused, 0.99), 0.002);
  const Json json = cli::LoadJson(summary, 2);
  EXPECT_EQ(json.at("goodPerSecond"), 0.5);
  EXPECT_EQ(json.at("outputTokensPerSecond"), 15.0);
  EXPECT_EQ(json.at("firstTokenSeconds").at("percentiles").size(), 101U);
}

TEST(LoadReportTest, PercentileIsANearestRank) {
  EXPECT_EQ(cli::Percentile({}, 0.5), 0);
  EXPECT_EQ(cli::Percentile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(cli::Percentile({3, 1, 2}, 1), 3);
  EXPECT_EQ(cli::Percentile({3, 1, 2}, 0), 1);
}

TEST(LoadRecorderTest, TokensAreThoseOfUsageOrElseThePieces) {
  const absl::Time past = absl::Now() - absl::Seconds(5);
  for (const auto& [said, wanted] : {std::pair(6, 6), std::pair(-1, 3)}) {
    cli::LoadRecorder recorder({.due = past, .window_end = absl::InfiniteFuture()});
    cli::LoadRecorder late({.due = past, .window_end = past});
    for (int i = 0; i < 3; ++i) {
      recorder.Piece(1);
      late.Piece(1);
    }
    const LoadOutcome outcome = recorder.End(absl::OkStatus(), {.output_tokens = said});
    EXPECT_EQ(outcome.usage.output_tokens, wanted);
    EXPECT_DOUBLE_EQ(outcome.window_tokens, wanted);
    EXPECT_EQ(outcome.gaps.size(), 2U);
    // From when it was due, not from when it was sent.
    EXPECT_GE(outcome.first_token, 5);
    EXPECT_GE(outcome.whole, outcome.first_token);
    EXPECT_DOUBLE_EQ(late.End(absl::OkStatus(), {.output_tokens = said}).window_tokens, 0);
  }
}

class LoadPromptsTest : public testing::Test {
 protected:
  absl::StatusOr<LoadPrompts> Read(const std::string& text) {
    OverwriteFile(directory_.Path("prompts"), text);
    return LoadPrompts::FromFile(directory_.Path("prompts"), 7);
  }
  const TempDirectory directory_;
};

TEST_F(LoadPromptsTest, LinesComeInOrderAgainAndAgain) {
  ASSERT_OK_AND_ASSIGN(LoadPrompts prompts,
                       Read("{\"prompt\": \"Once\", \"max_tokens\": 3}\n\n{\"prompt\": [1, 2]}\r\n"
                            "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}"));
  for (int round = 0; round < 2; ++round) {
    const LoadRequest text = prompts.Next();
    EXPECT_EQ(text.prompt, "Once");
    EXPECT_EQ(text.max_tokens, 3);
    const LoadRequest ids = prompts.Next();
    EXPECT_EQ(ids.prompt_ids, (std::vector<int32_t>{1, 2}));
    EXPECT_EQ(ids.max_tokens, 7);
    EXPECT_EQ(prompts.Next().messages.at(0).at("content"), "Hi");
  }
}

TEST_F(LoadPromptsTest, FaultsAreNamedWithTheirLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "no prompts"},
      {"{\"prompt\": \"a\"}\n{", "prompts:2"},
      {"[]", "prompts:1"},
      {"{\"prompt\": \"a\", \"maxtokens\": 3}", "maxtokens"},
      {"{\"max_tokens\": 3}", "either"},
      {"{\"prompt\": \"a\", \"messages\": []}", "either"},
      {"{\"prompt\": \"\"}", "prompt: wanted"},
      {"{\"prompt\": [1, -1]}", "prompt: wanted"},
      {"{\"prompt\": [1, 4294967296]}", "prompt: wanted"},
      {"{\"prompt\": \"a\", \"max_tokens\": 0}", "max_tokens"},
      {"{\"messages\": []}", "messages: empty"},
      {"{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}", "\"tool\""},
      {"{\"messages\": [{\"role\": \"user\", \"content\": 4}]}", "messages[0]: content"},
  };
  for (const auto& [text, named] : cases) {
    const auto prompts = Read(text);
    EXPECT_EQ(prompts.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(prompts.status().message()), HasSubstr(named)) << text;
  }
}

TEST(LoadPromptsRandomTest, SameSeedSamePrompts) {
  LoadPrompts one = LoadPrompts::Random(16, 8, 3);
  LoadPrompts same = LoadPrompts::Random(16, 8, 3);
  const LoadRequest first = one.Next();
  EXPECT_EQ(first.prompt_ids.size(), 16U);
  EXPECT_EQ(first.prompt_ids, same.Next().prompt_ids);
  EXPECT_NE(first.prompt_ids, one.Next().prompt_ids);
}

class BenchServeTest : public CliTest {
 protected:
  std::vector<std::string> OverHttp(const FakeOpenAiServer& server,
                                    std::vector<std::string> more) const {
    // The limits: nothing here depends on how fast this machine is.
    std::vector<std::string> arguments = {"bench",
                                          "serve",
                                          "m",
                                          "--api=openai",
                                          "--url=" + server.url(),
                                          "--seconds=1",
                                          "--first-token-limit-ms=3600000",
                                          "--next-token-limit-ms=3600000"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  static int Sum(const Json& row) {
    int sum =
        row.at("answered").get<int>() + row.at("refused").get<int>() + row.at("givenUp").get<int>();
    for (const auto& [code, count] : row.at("failures").items()) sum += count.get<int>();
    return sum;
  }
};

TEST_F(BenchServeTest, OverHttpTokensAreThoseOfUsage) {
  FakeOpenAiServer server([](int, HttpExchange& exchange) {
    return FakeOpenAiServer::Stream(exchange, {"a", "b", "c"});
  });
  const Json json =
      RunJson(OverHttp(server, {"--rates=20,40", "--prompt-tokens=5", "--output-tokens=6"}));
  ASSERT_EQ(json.at("rows").size(), 2U);
  for (const Json& row : json.at("rows")) {
    EXPECT_GT(row.at("answered"), 0);
    EXPECT_EQ(row.at("answered"), row.at("sent"));
    EXPECT_GT(row.at("outputTokensPerSecond"), 0.0);
    EXPECT_EQ(row.at("promptTokens"), 5 * row.at("answered").get<int>());
    EXPECT_GE(row.at("firstTokenSeconds").at("p99"), row.at("firstTokenSeconds").at("p50"));
    EXPECT_GE(row.at("clientCores"), 0.0);
  }
  EXPECT_EQ(json.at("capacityRequestsPerSecond"), 40.0);
  const std::vector<HttpRequest> requests = server.requests();
  EXPECT_EQ(requests.back().path, "/v1/completions");
  ASSERT_OK_AND_ASSIGN(const Json body, ParseJson(requests.back().body, "body"));
  EXPECT_EQ(body.at("model"), "m");
  EXPECT_EQ(body.at("prompt").size(), 5U);
  EXPECT_EQ(body.at("max_tokens"), 6);
  EXPECT_EQ(body.at("ignore_eos"), true);
  EXPECT_EQ(body.at("stream_options").at("include_usage"), true);
}

TEST_F(BenchServeTest, RefusalsAndFailuresAreCountedApart) {
  // The first is the one that warms up.
  FakeOpenAiServer server([](int number, HttpExchange& exchange) {
    switch (number % 4) {
      case 0:
        return FakeOpenAiServer::Stream(exchange, {"a", "b"});
      case 1:
        exchange.Respond({.status = 429, .body = R"({"error": {"message": "full"}})"});
        return true;
      case 2:
        exchange.Respond({.status = 500, .body = "oops"});
        return true;
      default:  // a stream that breaks off
        exchange.StartStream("text/event-stream");
        exchange.Write("data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
        exchange.EndStream();
        return true;
    }
  });
  const Json json = RunJson(OverHttp(server, {"--rate=40"}));
  const Json& row = json.at("rows").at(0);
  EXPECT_GT(row.at("answered"), 0);
  EXPECT_GT(row.at("refused"), 0);
  EXPECT_GT(row.at("refusedSeconds").at("p99"), 0.0);
  EXPECT_GT(row.at("failures").at("INTERNAL"), 0);
  EXPECT_GT(row.at("failures").at("DATA_LOSS"), 0);
  EXPECT_EQ(Sum(row), row.at("sent"));
  EXPECT_EQ(Sum(row), static_cast<int>(server.requests().size()) - 1);
  EXPECT_EQ(row.at("good"), row.at("answered"));

  const Result table = Run(OverHttp(server, {"--rate=40"}));
  EXPECT_THAT(table.error + table.output, HasSubstr("refused, within"));
  EXPECT_THAT(table.error + table.output, HasSubstr("failed with DATA_LOSS"));
}

TEST_F(BenchServeTest, WhatIsNotAnsweredInTimeIsGivenUp) {
  FakeOpenAiServer server([](int number, HttpExchange& exchange) {
    return number == 0 && FakeOpenAiServer::Stream(exchange, {"a"});
  });
  const Json json = RunJson(OverHttp(server, {"--rate=20", "--drain-seconds=0"}));
  const Json& row = json.at("rows").at(0);
  EXPECT_GT(row.at("givenUp"), 0);
  EXPECT_EQ(row.at("givenUp"), row.at("sent"));
  EXPECT_EQ(row.at("goodPerSecond"), 0.0);
}

TEST_F(BenchServeTest, ClosedLoopKeepsSoManyStreamsBusy) {
  FakeOpenAiServer server([](int, HttpExchange& exchange) {
    return FakeOpenAiServer::Stream(exchange, {"a", "b"});
  });
  const Json json = RunJson(OverHttp(server, {"--concurrency=1,3"}));
  ASSERT_EQ(json.at("rows").size(), 2U);
  EXPECT_EQ(json.at("rows").at(1).at("streams"), 3);
  for (const Json& row : json.at("rows")) {
    EXPECT_GE(row.at("answered"), row.at("streams"));
    EXPECT_GT(row.at("outputTokensPerSecond"), 0.0);
  }
  EXPECT_EQ(json.count("capacityRequestsPerSecond"), 0U);
}

TEST_F(BenchServeTest, ChatsOfAFileGoToBothApis) {
  const std::string prompts = directory_.Path("prompts");
  OverwriteFile(prompts,
                "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"},"
                "{\"role\": \"user\", \"content\": \"Hi\"}], \"max_tokens\": 3}\n");
  FakeOpenAiServer server([](int, HttpExchange& exchange) {
    return FakeOpenAiServer::Stream(exchange, {"a", "b"});
  });
  const Json http =
      RunJson(OverHttp(server, {"--concurrency=1", "--prompts=" + prompts, "--end-of-text"}));
  EXPECT_GT(http.at("rows").at(0).at("answered"), 0);
  EXPECT_EQ(server.requests().back().path, "/v1/chat/completions");
  ASSERT_OK_AND_ASSIGN(const Json body, ParseJson(server.requests().back().body, "body"));
  EXPECT_EQ(body.at("messages").at(0).at("role"), "system");
  EXPECT_EQ(body.at("max_tokens"), 3);
  EXPECT_EQ(body.count("ignore_eos"), 0U);

  services_.pieces.resize(1);
  services_.pieces[0].set_text("Hello.");
  services_.pieces[0].add_token_ids(4);
  const Json grpc =
      RunJson({"bench", "serve", "m", "--seconds=1", "--concurrency=2", "--prompts=" + prompts});
  EXPECT_GT(grpc.at("rows").at(0).at("answered"), 2);
  EXPECT_EQ(services_.generated().chat().messages_size(), 2);
  EXPECT_EQ(services_.generated().chat().messages(0).role(), inference::v1::Chat::Message::SYSTEM);
  EXPECT_EQ(services_.generated().max_output_tokens(), 3);
  EXPECT_TRUE(services_.generated().ignore_end_of_text());
}

TEST_F(BenchServeTest, MistakesAreSaidAtOnce) {
  FakeOpenAiServer server([](int, HttpExchange& exchange) {
    exchange.Respond({.status = 404, .body = R"({"error": {"message": "no such model"}})"});
    return true;
  });
  const Result missing = Run(OverHttp(server, {}));
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.error, HasSubstr("NOT_FOUND: HTTP 404: no such model"));
  const Result scheme = Run({"bench", "serve", "m", "--api=openai", "--url=https://127.0.0.1:1"});
  EXPECT_EQ(scheme.exit_code, 1);
  EXPECT_THAT(scheme.error, HasSubstr("measure http://"));
  const Result unused = RunConnected({"bench", "serve", "m", "--url=http://127.0.0.1:1"});
  EXPECT_EQ(unused.exit_code, 1);
  EXPECT_THAT(unused.error, HasSubstr("--api openai"));
  EXPECT_EQ(Run({"bench", "serve", "m", "--rate=1", "--concurrency=1"}).exit_code, 2);
}

}  // namespace
}  // namespace quern

#ifndef QUERN_TESTS_SERVICES_COMMON_HTTP_CLIENT_H_
#define QUERN_TESTS_SERVICES_COMMON_HTTP_CLIENT_H_

#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>

namespace quern {

// A connection to "127.0.0.1:port", for the caller to close. A read waits for at most 20 s.
inline int ConnectTo(const std::string& address) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval timeout = {20, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  return fd;
}

// Sends `bytes` to "127.0.0.1:port" and returns what comes back until the other side closes.
inline std::string Exchange(const std::string& address, const std::string& bytes) {
  const int fd = ConnectTo(address);
  EXPECT_EQ(send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  std::string answer;
  char buffer[65536];
  ssize_t got = 0;
  while ((got = recv(fd, buffer, sizeof(buffer), 0)) > 0) answer.append(buffer, got);
  close(fd);
  return answer;
}

// The whole answer, head included, to a GET that closes the connection.
inline std::string HttpGet(const std::string& address, const std::string& target) {
  return Exchange(
      address, absl::StrCat("GET ", target, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
}

// The value on the line `series` of a scrape, or -1 when the line is not there.
inline double ScrapedValue(const std::string& scrape, const std::string& series) {
  for (absl::string_view line : absl::StrSplit(scrape, '\n')) {
    if (line.substr(0, series.size()) != series || line.size() <= series.size() ||
        line[series.size()] != ' ') {
      continue;
    }
    double value = 0;
    if (absl::SimpleAtod(line.substr(series.size() + 1), &value)) return value;
  }
  return -1;
}

// Lines of a scrape that carry a value.
inline int NumSeries(const std::string& scrape) {
  const size_t body = scrape.find("\r\n\r\n");
  int series = 0;
  for (absl::string_view line : absl::StrSplit(scrape.substr(body + 4), '\n')) {
    if (!line.empty() && line[0] != '#') ++series;
  }
  return series;
}

// Checks what every service promises of its scrape, whatever it has done: at most 1,000 series,
// within 20 ms (the best of some, as tests share their machine).
inline void ExpectSmallScrape(const std::string& address) {
  auto best = std::chrono::steady_clock::duration::max();
  int series = 0;
  for (int i = 0; i < 10; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const std::string scrape = HttpGet(address, "/metrics");
    best = std::min(best, std::chrono::steady_clock::now() - start);
    series = NumSeries(scrape);
  }
  const double milliseconds = std::chrono::duration<double, std::milli>(best).count();
  testing::Test::RecordProperty("series", series);
  std::cout << "series=" << series << " scrape_ms=" << milliseconds << "\n";
  EXPECT_GT(series, 100);
  EXPECT_LE(series, 1000);
  EXPECT_LE(milliseconds, 20);
}

}  // namespace quern

#endif  // QUERN_TESTS_SERVICES_COMMON_HTTP_CLIENT_H_

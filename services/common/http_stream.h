#ifndef QUERN_SERVICES_COMMON_HTTP_STREAM_H_
#define QUERN_SERVICES_COMMON_HTTP_STREAM_H_

#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <chrono>
#include <optional>
#include <utility>

namespace quern {

// A connection of an HTTP server, with TLS or without: an AsyncStream as Boost.Beast takes them.
// For one thread.
class HttpStream {
 public:
  using Tcp = boost::beast::tcp_stream;
  using Tls = boost::asio::ssl::stream<Tcp&>;
  using executor_type = Tcp::executor_type;

  // `tls` null: without.
  HttpStream(boost::asio::ip::tcp::socket socket, SSL_CTX* tls) : tcp_(std::move(socket)) {
    if (tls != nullptr) tls_.emplace(tcp_, SSL_new(tls));
  }

  executor_type get_executor() { return tcp_.get_executor(); }
  bool is_tls() const { return tls_.has_value(); }
  SSL* ssl() { return tls_->native_handle(); }
  Tcp& tcp() { return tcp_; }

  // With TLS only.
  template <typename Handler>
  void async_handshake(Handler&& handler) {
    tls_->async_handshake(boost::asio::ssl::stream_base::server, std::forward<Handler>(handler));
  }
  // Says that nothing follows and waits until the peer says so.
  template <typename Handler>
  void async_shutdown(Handler&& handler) {
    tls_->async_shutdown(std::forward<Handler>(handler));
  }

  template <typename Buffers, typename Handler>
  void async_read_some(const Buffers& buffers, Handler&& handler) {
    if (tls_.has_value()) {
      tls_->async_read_some(buffers, std::forward<Handler>(handler));
    } else {
      tcp_.async_read_some(buffers, std::forward<Handler>(handler));
    }
  }
  template <typename Buffers, typename Handler>
  void async_write_some(const Buffers& buffers, Handler&& handler) {
    if (tls_.has_value()) {
      tls_->async_write_some(buffers, std::forward<Handler>(handler));
    } else {
      tcp_.async_write_some(buffers, std::forward<Handler>(handler));
    }
  }

 private:
  Tcp tcp_;
  std::optional<Tls> tls_;
};

}  // namespace quern

#endif  // QUERN_SERVICES_COMMON_HTTP_STREAM_H_

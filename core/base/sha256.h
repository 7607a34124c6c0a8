#ifndef QUERN_CORE_BASE_SHA256_H_
#define QUERN_CORE_BASE_SHA256_H_

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <memory>
#include <string>

namespace quern {

// SHA-256 (FIPS 180-4) in pieces. Thread-compatible.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(absl::string_view bytes);
  // 64 lower-case hex digits. Call once; nothing may follow.
  std::string FinishHex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(absl::string_view bytes);

// A digest as it may become part of a path: exactly 64 lower-case hex digits.
class Digest {
 public:
  // INVALID_ARGUMENT for anything else.
  static absl::StatusOr<Digest> Parse(absl::string_view hex);
  const std::string& hex() const { return hex_; }
  friend bool operator==(const Digest& a, const Digest& b) { return a.hex_ == b.hex_; }

 private:
  explicit Digest(std::string hex) : hex_(std::move(hex)) {}
  std::string hex_;
};

}  // namespace quern

#endif  // QUERN_CORE_BASE_SHA256_H_

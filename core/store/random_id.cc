#include "core/store/random_id.h"

#include <absl/strings/escaping.h>
#include <sys/random.h>

#include "core/base/log.h"

namespace quern {

std::string RandomHex(int num_bytes) {
  CHECK(num_bytes >= 1 && num_bytes <= 32) << "num_bytes=" << num_bytes;
  // Requests of up to 256 bytes are never cut short.
  char bytes[32];
  CHECK(getrandom(bytes, num_bytes, 0) == num_bytes);
  return absl::BytesToHexString(absl::string_view(bytes, num_bytes));
}

}  // namespace quern

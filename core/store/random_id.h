#ifndef QUERN_CORE_STORE_RANDOM_ID_H_
#define QUERN_CORE_STORE_RANDOM_ID_H_

#include <string>

namespace quern {

// `num_bytes` (1..32) from the kernel's random generator, as lower-case hex. Ends the process when
// the kernel has none: an id or token that can be guessed is worse.
std::string RandomHex(int num_bytes);

}  // namespace quern

#endif  // QUERN_CORE_STORE_RANDOM_ID_H_

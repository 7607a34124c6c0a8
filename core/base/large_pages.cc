#include "core/base/large_pages.h"

#include <malloc.h>
#include <stdlib.h>
#include <unistd.h>

namespace quern {

void UseLargePages(char** argv) {
#if defined(__GLIBC__)
  // mmap_threshold: what is larger is given back when it is freed, as streams of gigabytes should
  // be. trim_threshold: more than a step's tensors.
  constexpr char kTunables[] =
      "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=268435456:"
      "glibc.malloc.trim_threshold=4294967296";
  if (getenv("GLIBC_TUNABLES") != nullptr) return;
  if (setenv("GLIBC_TUNABLES", kTunables, /*overwrite=*/0) != 0) return;
  execv("/proc/self/exe", argv);
#else
  (void)argv;
#endif
}

void GiveBackFreedMemory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace quern

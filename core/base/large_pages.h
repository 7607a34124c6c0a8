#ifndef QUERN_CORE_BASE_LARGE_PAGES_H_
#define QUERN_CORE_BASE_LARGE_PAGES_H_

namespace quern {

// Has the C library's allocator take memory in large pages and keep what is freed: a program that
// computes on large arrays, made and freed step by step, then waits less for page tables and for
// pages to be cleared. The allocator reads these settings (glibc's tunables) once, at the start, so
// the program starts anew, with the same arguments and process id; call this first in main. A no-op
// where GLIBC_TUNABLES is set already, by this or by whoever knows better, or where the program
// cannot be started anew: it is then slower, and the same in everything else.
void UseLargePages(char** argv);

// Gives what the allocator keeps of freed memory back to the system: between two parts of a program
// that need much, and not the same.
void GiveBackFreedMemory();

}  // namespace quern

#endif  // QUERN_CORE_BASE_LARGE_PAGES_H_

# Toolchain file: compiles for AArch64 with Debian's g++-aarch64-linux-gnu, and runs the tests under qemu-user
# on a CPU that has every extension.
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=tests/kernels/aarch64.cmake -DQUERN_KERNELS_ONLY=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu)

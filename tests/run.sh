#!/usr/bin/env bash
# Installs what is needed, builds Quern and runs its tests.
#   tests/run.sh          format, build, unit, parity and e2e tests
#   tests/run.sh --slow   adds the slow tests
#   tests/run.sh --all    adds the slow tests, the sanitizer builds, the kernels for AArch64 and clang's check of locks
set -euo pipefail
cd "$(dirname "$0")/.."
all= slow=
case "${1:-}" in
  '') ;;
  --slow) slow=1 ;;
  --all) all=1 slow=1 ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac

start=$SECONDS
step() { printf '\n== %s (%d s)\n' "$*" "$((SECONDS - start))"; }
failed=0
# Runs the tests of one build folder; a failure is remembered, so that every build reports.
run_tests() { ctest --test-dir "$1" --output-on-failure --no-tests=error -j 2 "${@:2}" || failed=1; }

step 'install'
deploy/install.sh --tests
if [ -n "$slow" ]; then
  QUERN_SMOLLM2_GGUF=$(deploy/fetch_model.sh)
  export QUERN_SMOLLM2_GGUF
fi

step 'format'
git ls-files -- '*.h' '*.cc' | xargs clang-format-14 --dry-run -Werror

step 'build'
cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUERN_TESTS=ON -DQUERN_TRAINING=ON \
  -DQUERN_JUMBO=ON -Wno-dev >/dev/null
ninja -C build --quiet

step 'unit, parity and e2e tests'
run_tests build -L 'unit|parity|e2e'

if [ -n "$slow" ]; then
  step 'slow tests'
  run_tests build -L slow
fi

if [ -n "$all" ]; then
  step 'headers that no source file proves to compile alone'
  ninja -C build --quiet all_verify_interface_header_sets

  step 'AddressSanitizer and UndefinedBehaviorSanitizer, all but core/quant'
  cmake -S . -B build/asan -G Ninja -DQUERN_JUMBO=ON -DQUERN_TRAINING=OFF \
    -DQUERN_SANITIZE=address,undefined -Wno-dev >/dev/null
  ninja -C build/asan --quiet
  ASAN_OPTIONS=abort_on_error=1:detect_stack_use_after_return=1 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    run_tests build/asan -L 'unit|parity|e2e'

  step 'ThreadSanitizer: whatever has threads'
  threaded=(core_base_test core_store_test engine_test eval_test services_common_test
    services_jobs_test services_worker_test services_inference_test services_cli_test)
  cmake -S . -B build/tsan -G Ninja -DQUERN_JUMBO=ON -DQUERN_TRAINING=OFF -DQUERN_SANITIZE=thread \
    -Wno-dev >/dev/null
  ninja -C build/tsan --quiet "${threaded[@]}"
  # Programs that a test starts report as well; what they write is judged afterwards.
  rm -rf build/tsan/reports
  mkdir build/tsan/reports
  # (Thread leaks: gRPC's own threads; a std::thread that is not joined ends the program.)
  options=exitcode=0:report_thread_leaks=0:history_size=7:ignore_noninstrumented_modules=1
  TSAN_OPTIONS=$options:log_path=$PWD/build/tsan/reports/tsan \
    run_tests build/tsan -R "^($(IFS='|'; echo "${threaded[*]}"))\$"
  find build/tsan/reports -type f -print0 | xargs -0 tests/tsan_reports.py || failed=1

  step 'kernels for AArch64, under qemu'
  cmake -S . -B build/aarch64 -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUERN_JUMBO=ON \
    -DQUERN_KERNELS_ONLY=ON -DCMAKE_TOOLCHAIN_FILE=tests/kernels/aarch64.cmake -Wno-dev >/dev/null
  ninja -C build/aarch64 --quiet kernels_test
  run_tests build/aarch64 -L unit

  # File by file, so that each is seen to include what it needs.
  step 'clang: -Wthread-safety as an error'
  cmake -S . -B build/clang -G Ninja -DCMAKE_CXX_COMPILER=clang++-14 -DQUERN_TRAINING=OFF \
    -DQUERN_TESTS=OFF -Wno-dev >/dev/null
  ninja -C build/clang --quiet
fi

step 'done'
exit "$failed"

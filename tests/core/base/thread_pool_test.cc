#include "core/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace quern {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnceInWholeGrains) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t count : {0, 1, 31, 32, 33, 100, 1000}) {
      std::vector<std::atomic<int>> hits(count);
      pool.ParallelFor(count, 32, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(begin % 32, 0);
        EXPECT_TRUE(end % 32 == 0 || end == count);
        for (int64_t i = begin; i < end; ++i) ++hits[i];
      });
      for (int64_t i = 0; i < count; ++i) EXPECT_EQ(hits[i], 1) << i << " of " << count;
    }
  }
}

TEST(ThreadPoolTest, RegionsFollowEachOther) {
  ThreadPool pool(3);
  std::vector<int64_t> values(300, 0);
  for (int round = 0; round < 2000; ++round) {
    pool.ParallelFor(300, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++values[i];
    });
  }
  for (int64_t value : values) EXPECT_EQ(value, 2000);
}

TEST(ThreadPoolTest, ThreadsThatComeLateTakeNothingTwice) {
  // Regions of changing sizes, with nothing between them.
  ThreadPool pool(4);
  std::vector<std::atomic<int>> hits(64);
  for (int round = 0; round < 100'000; ++round) {
    const int64_t count = 2 + round * 37 % 63;
    pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++hits[i];
    });
    for (int64_t i = 0; i < 64; ++i) {
      ASSERT_EQ(hits[i].exchange(0), i < count ? 1 : 0) << i << " of " << count;
    }
  }
}

TEST(ThreadPoolTest, NobodyWaitsForAThreadThatHasNothing) {
  // The first chunk to run holds its thread until all others are done: by another thread.
  ThreadPool pool(2);
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> done = 0;
    std::atomic<bool> is_first = true;
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) {
      if (is_first.exchange(false)) {
        while (done < 64 - (end - begin)) std::this_thread::yield();
      }
      done += static_cast<int>(end - begin);
    });
    EXPECT_EQ(done, 64);
  }
}

}  // namespace
}  // namespace quern

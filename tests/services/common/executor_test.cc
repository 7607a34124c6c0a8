#include "services/common/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace quern {
namespace {

TEST(ExecutorTest, RunsAllThatWasPosted) {
  std::atomic<int> count = 0;
  {
    Executor executor(3);
    for (int i = 0; i < 500; ++i) EXPECT_TRUE(executor.TryPost([&] { ++count; }));
  }
  EXPECT_EQ(count, 500);
}

TEST(ExecutorTest, RefusesWhenFull) {
  std::promise<void> started;
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  std::atomic<int> count = 0;
  {
    Executor executor(1, /*capacity=*/2);
    ASSERT_TRUE(executor.TryPost([&] {
      started.set_value();
      released.wait();
    }));
    started.get_future().wait();
    EXPECT_TRUE(executor.TryPost([&] { ++count; }));
    EXPECT_TRUE(executor.TryPost([&] { ++count; }));
    EXPECT_FALSE(executor.TryPost([&] { ++count; }));
    executor.Post([&] { ++count; });
    release.set_value();
  }
  EXPECT_EQ(count, 3);
}

}  // namespace
}  // namespace quern

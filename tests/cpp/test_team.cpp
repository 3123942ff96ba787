// Teams: loops that cover everything once, one after the other, with threads that come late, sleep or throw.
#include <atomic>
#include <chrono>
#include <stdexcept>

#include "threads.h"

using namespace rwkv;

namespace {

// Every unit is in exactly one range, and a loop sees what the one before it wrote, without any other synchronisation.
void test_loops(int threads, int64_t n, int64_t work, int pause_us) {
  std::vector<int64_t> before(n, 0), after(n, 0);
  with_team(threads, [&](const cpu::Run& run) {
    for (int loop = 1; loop <= 50; ++loop) {
      run(n, work, [&](int64_t begin, int64_t end) {
        CHECK(0 <= begin && begin < end && end <= n, threads, n, work, begin, end);
        for (int64_t i = begin; i < end; ++i) after[i] += before[n - 1 - i] + 1;
      });
      // Longer than threads spin, so that the followers fall asleep.
      if (pause_us) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
      for (int64_t i = 0; i < n; ++i) CHECK(after[i] == loop, threads, n, work, i, loop, after[i]);
      run(n, work, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) before[i] = after[n - 1 - i] - loop;
      });
    }
    if (pause_us) std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  });
}

// A range that takes long: the leader sleeps until it is done.
void test_slow_range(int threads) {
  std::atomic<int> done = 0;
  with_team(threads, [&](const cpu::Run& run) {
    for (int loop = 1; loop <= 5; ++loop) {
      run(2 * threads, 1 << 20, [&](int64_t begin, int64_t end) {
        std::this_thread::sleep_for(std::chrono::milliseconds(begin == 0 ? 5 : 1));
        done += static_cast<int>(end - begin);
      });
      CHECK(done == 2 * threads * loop, threads, loop, done);
    }
  });
}

// An error in any thread reaches the leader after the loop; the team goes on, and also ends when the leader throws.
void test_errors(int threads) {
  for (int64_t bad = 0; bad < 8; ++bad) {
    int caught = 0;
    std::atomic<int64_t> others = 0;
    try {
      with_team(threads, [&](const cpu::Run& run) {
        try {
          run(8, 1 << 20, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
              if (i == bad) throw std::runtime_error("of a loop");
          });
        } catch (const std::runtime_error&) {
          ++caught;
        }
        run(8, 1 << 20, [&](int64_t begin, int64_t end) { others += end - begin; });
        throw std::logic_error("of the leader");
      });
    } catch (const std::logic_error&) {
      ++caught;
    }
    CHECK(caught == 2 && others == 8, threads, bad, caught, others);
  }
}

// Work that is too small for two threads is done by the leader, and nothing is done for an empty loop.
void test_small_loops() {
  const auto leader = std::this_thread::get_id();
  with_team(most_threads(), [&](const cpu::Run& run) {
    for (int i = 0; i < 100; ++i) {
      run(1000, 4, [&](int64_t, int64_t) { CHECK(std::this_thread::get_id() == leader); });
      run(1, int64_t{1} << 30, [&](int64_t, int64_t) { CHECK(std::this_thread::get_id() == leader); });
    }
    run(0, 1, [](int64_t, int64_t) { CHECK(false); });
  });
}

}  // namespace

int main() {
  for (int threads = 1; threads <= most_threads(); ++threads) {
    for (const int64_t n : {1, 2, 7, 100})
      for (const int64_t work : {1, 1 << 13, 1 << 20}) test_loops(threads, n, work, 0);
    test_loops(threads, 64, 1 << 20, 300);
    test_slow_range(threads);
    test_errors(threads);
  }
  test_small_loops();
  return failures();
}

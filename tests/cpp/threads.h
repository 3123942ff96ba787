// Threads of the tests' own for kernels to run on, so that a check for races sees all there is to see: what torch's
// pool runs on, libgomp, waits in ways that the thread sanitizer does not know.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/team.h"

// In valgrind, which runs one thread at a time, fewer will do.
inline int most_threads() {
  const char* const wanted = std::getenv("RWKV_TEST_THREADS");
  return wanted ? std::atoi(wanted) : 4;
}

// Uneven ranges in a shuffled order, dealt out in turn: none begins where a thread's last one ended, and who has which
// is another matter in every call. All of them meet at the end and nowhere else.
inline rwkv::cpu::Run on_threads(int count) {
  return [count](int64_t n, int64_t, const rwkv::cpu::Range& fn) {
    static std::mt19937 random(5);
    std::vector<std::pair<int64_t, int64_t>> ranges;
    for (int64_t begin = 0, end; begin < n; begin = end) {
      end = std::min<int64_t>(n, begin + 1 + random() % std::max<int64_t>(1, n / count));
      ranges.emplace_back(begin, end);
    }
    std::shuffle(ranges.begin(), ranges.end(), random);
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < count; ++thread)
      threads.emplace_back([&ranges, &fn, thread, count] {
        for (size_t i = thread; i < ranges.size(); i += count) fn(ranges[i].first, ranges[i].second);
      });
  };
}

// Runs a kernel in a team of this many threads; it is the leader who calls kernel(run).
template <class Kernel>
void with_team(int count, const Kernel& kernel) {
  rwkv::cpu::Team team(count);
  std::vector<std::jthread> followers;
  for (int thread = 1; thread < count; ++thread) followers.emplace_back([&team] { team.follow(); });
  team.lead(kernel);
}

// Any NaN stands for all: of two that meet, the compiler's order of operands picks one.
template <class T>
std::string bytes_of(std::vector<T> values) {
  if constexpr (std::is_floating_point_v<T>)
    for (T& value : values)
      if (std::isnan(value)) value = std::numeric_limits<T>::quiet_NaN();
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

template <class... Vectors>
std::string bytes_of(const Vectors&... parts) {
  return (bytes_of(parts) + ...);
}

// compute(run) gives the bytes of a result: they must not depend on the threads, nor change when asked for twice.
template <class Compute, class... Values>
void check_same_bits(const Compute& compute, const Values&... values) {
  const std::string expected = compute(on_threads(1));
  for (int threads = 1; threads <= most_threads(); ++threads)
    CHECK(compute(on_threads(threads)) == expected, threads, "threads;", values...);
}

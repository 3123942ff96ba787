// Threads that run one loop after another without being started anew for each: a leader, which runs a kernel, and
// followers, which wait for its loops. Torch-free.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

// All threads, the leader too, claim ranges of a loop until none is left, so a thread that the system has suspended
// delays a loop only while it is in the middle of a range. Threads first spin, because the next loop mostly begins
// within microseconds, and then sleep, because another program, or a thread of this team, may need the core.
class Team {
 public:
  explicit Team(int threads) : threads_(threads) {}

  // Leader: calls kernel(run), and lets the followers return, also if the kernel throws. Loops with little work run on
  // the leader alone. If the body of a loop throws in any thread, `run` does.
  template <class Kernel>
  void lead(const Kernel& kernel) {
    struct Closing {
      Team& team;
      ~Closing() { team.close(); }
    } const closing{*this};
    kernel(Run([this](int64_t n, int64_t work, const Range& fn) { run(n, work, fn); }));
  }

  // Follower: takes part in loops until the leader has run its kernel.
  void follow();

 private:
  // The number of the loop, and of its units those that nobody has claimed yet, which are its last ones. Both are in
  // one word, so that a thread that was suspended before it claims something does not claim it in a later loop.
  using Claims = uint64_t;
  static constexpr int kUnclaimedBits = 40;
  static constexpr Claims kOneLoop = Claims{1} << kUnclaimedBits, kClosed = ~Claims{0};
  static int64_t unclaimed(Claims claims) { return static_cast<int64_t>(claims % kOneLoop); }

  void run(int64_t n, int64_t work, const Range& fn);
  void close();
  void work_on(Claims claims);
  void call(int64_t begin, int64_t end) noexcept;

  // Written by the leader while no loop is running; atomic because threads read `n_` and `least_` before they claim.
  std::atomic<int64_t> n_{0}, least_{1};
  const Range* fn_ = nullptr;
  const int threads_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  alignas(64) std::atomic<Claims> claims_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};  // units
};

}  // namespace rwkv::cpu

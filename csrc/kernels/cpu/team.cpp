#include "kernels/cpu/team.h"

#include <algorithm>
#include <utility>

namespace rwkv::cpu {
namespace {

// A range takes at least as long as this many multiply-adds, about 3 us: each begins with weights that are in no cache.
constexpr int64_t kLeastWork = 1 << 15;
// About 20 us on an AMD EPYC and 70 us on an Intel Xeon, whose pauses are longer.
constexpr int kSpins = 2000;

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when the value is no longer `old`; whoever changes it calls notify_all.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i, pause())
    if (value.load(std::memory_order_acquire) != old) return;
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

void Team::run(int64_t n, int64_t work, const Range& fn) {
  const int64_t least = kLeastWork / std::max<int64_t>(1, work) + 1;
  if (threads_ == 1 || n < 2 * least) {
    if (n > 0) fn(0, n);
    return;
  }
  fn_ = &fn;
  n_.store(n, std::memory_order_relaxed);
  least_.store(least, std::memory_order_relaxed);
  unfinished_.store(n, std::memory_order_relaxed);
  const Claims before = claims_.load(std::memory_order_relaxed);
  claims_.store(before - unclaimed(before) + kOneLoop + n, std::memory_order_release);
  claims_.notify_all();
  Claims claims = claims_.load(std::memory_order_acquire);
  while (unclaimed(claims)) {
    work_on(claims);
    claims = claims_.load(std::memory_order_acquire);
  }
  while (const int64_t left = unfinished_.load(std::memory_order_acquire)) wait_while(unfinished_, left);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::close() {
  claims_.store(kClosed, std::memory_order_release);
  claims_.notify_all();
}

void Team::follow() {
  for (Claims claims; (claims = claims_.load(std::memory_order_acquire)) != kClosed;) {
    if (unclaimed(claims))
      work_on(claims);
    else
      wait_while(claims_, claims);
  }
}

// Claims a range and works on it, unless another thread has claimed something in the meantime. Ranges become shorter
// towards the end of a loop, so that the threads finish at about the same time.
void Team::work_on(Claims claims) {
  const int64_t left = unclaimed(claims), n = n_.load(std::memory_order_relaxed);
  const int64_t size = std::min(left, std::max(least_.load(std::memory_order_relaxed), left * 3 / (4 * threads_)));
  if (!claims_.compare_exchange_strong(claims, claims - size, std::memory_order_acq_rel)) return;
  call(n - left, n - left + size);
  if (unfinished_.fetch_sub(size, std::memory_order_acq_rel) == size) unfinished_.notify_all();
}

void Team::call(int64_t begin, int64_t end) noexcept {
  try {
    (*fn_)(begin, end);
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

}  // namespace rwkv::cpu

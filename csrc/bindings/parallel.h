// Torch's own thread pool as the `run` that CPU kernels ask for.
#pragma once

#include <ATen/Parallel.h>

#include "kernels/cpu/parallel.h"

namespace rwkv {

// Work, in multiply-adds, below which one thread does it all: about 50 us. Threads meet at the end of each region, and
// where other programs use the processor's cores, a thread waits there until the system runs the other one again:
// milliseconds. The matrices of a model of 100 million parameters are above.
constexpr int64_t kWorthDividing = 1 << 19;

inline void torch_threads(int64_t n, int64_t work, const cpu::Range& fn) {
  if (n <= 1 || work * n < kWorthDividing) {
    if (n > 0) fn(0, n);
    return;
  }
  at::parallel_for(0, n, 1, fn);
}

}  // namespace rwkv

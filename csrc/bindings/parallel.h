// Torch's thread pool as the `run` argument of CPU kernels.
#pragma once

#include <ATen/Parallel.h>

#include "kernels/cpu/parallel.h"

namespace rwkv {

// The work, in multiply-adds, below which one thread does everything: about 50 us. Threads wait for each other at the
// end of each parallel region; if other programs use the cores, that can take milliseconds, until the system schedules
// the last thread again. The matrices of a model of 100 million parameters are above this limit.
constexpr int64_t kWorthDividing = 1 << 19;

inline void torch_threads(int64_t n, int64_t work, const cpu::Range& fn) {
  if (n <= 1 || work * n < kWorthDividing) {
    if (n > 0) fn(0, n);
    return;
  }
  at::parallel_for(0, n, 1, fn);
}

}  // namespace rwkv

// Torch's thread pool as the `run` argument of CPU kernels.
#pragma once

#include <ATen/Parallel.h>

#include <exception>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/team.h"

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

// Calls kernel(run) for a kernel with many loops, the largest of which has this many multiply-adds. All of them run in
// one parallel region, where a loop costs the threads less time to meet, much less if other programs use the cores.
template <class Kernel>
void torch_team(int64_t largest, const Kernel& kernel) {
#if AT_PARALLEL_OPENMP && defined(_OPENMP)
  if (largest >= kWorthDividing && at::get_num_threads() > 1 && !at::in_parallel_region()) {
    cpu::Team team(at::get_num_threads());
    std::exception_ptr error;
#pragma omp parallel
    if (omp_get_thread_num() > 0) {
      team.follow();
    } else {
      try {
        team.lead(kernel);
      } catch (...) {  // may not leave the region
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  kernel(torch_threads);
}

}  // namespace rwkv

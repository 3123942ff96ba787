// Torch's own thread pool as the `run` that CPU kernels ask for.
#pragma once

#include <ATen/Parallel.h>

#include "kernels/cpu/parallel.h"

namespace rwkv {

// `grain` units at least go to each thread.
inline cpu::Run torch_threads(int64_t grain) {
  return [grain](int64_t n, const cpu::Range& fn) { at::parallel_for(0, n, grain, fn); };
}

}  // namespace rwkv

// Sums of integers over the threads of a block. Torch-free; device code.
#pragma once

#include "kernels/cuda/warp.cuh"

namespace rwkv::cuda {

struct Scanned {
  int64_t before, all;  // the sums over the threads before this one, and over all
};

// `totals`, in shared memory, may be written again after another barrier. All threads must call this.
template <int warps>
__device__ Scanned block_scan(int64_t mine, int64_t* totals) {
  int64_t upto = mine;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t other = __shfl_up_sync(kAllLanes, upto, distance);
    if (lane() >= distance) upto += other;
  }
  if (lane() == kWarp - 1) totals[warp()] = upto;
  __syncthreads();
  Scanned sums{upto - mine, 0};
  for (int w = 0; w < warps; ++w) {
    if (w < warp()) sums.before += totals[w];
    sums.all += totals[w];
  }
  return sums;
}

}  // namespace rwkv::cuda

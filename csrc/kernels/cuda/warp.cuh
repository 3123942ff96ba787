// The warps of a block, and sums over lanes in a fixed order. Torch-free; device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace rwkv::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int lane() { return thread() % kWarp; }
__device__ inline int warp() { return thread() / kWarp; }

// n adjacent numbers, loaded or stored with as few instructions as possible.
template <class Number, int n>
struct alignas(n * sizeof(Number) < 16 ? n * sizeof(Number) : 16) Pack {
  Number at[n];
};

// Sums each of n values over the lanes whose indices differ in the bits `mask`, mask / 2, ..., `last`. While a lane has
// more than one value, it keeps one half of them and passes the other half to another lane. Every value is summed in
// the same tree of additions whatever n is, so the results do not depend on n.
//
// Writes this lane's sums, kSpread of them, to values[0] and following, and returns the index of the first among the n,
// or -1 if an earlier lane has the same sums.
template <int n, int mask, int last>
__device__ inline int spread_sums(float* values) {
  if constexpr (mask < last) {
    return 0;
  } else {
    const bool upper = lane() & mask;
    if constexpr (n == 1) {
      values[0] += __shfl_xor_sync(kAllLanes, values[0], mask);
      const int index = spread_sums<1, mask / 2, last>(values);
      return upper ? -1 : index;
    } else {
      constexpr int half = n / 2;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const float kept = upper ? values[half + i] : values[i], given = upper ? values[i] : values[half + i];
        values[i] = kept + __shfl_xor_sync(kAllLanes, given, mask);
      }
      const int index = spread_sums<half, mask / 2, last>(values);
      return index < 0 ? index : index + (upper ? half : 0);
    }
  }
}

// The number of sums that spread_sums leaves in a lane.
template <int n, int mask, int last>
constexpr int kSpread = mask < last || n == 1 ? n : kSpread<n / 2, mask / 2, last>;

// The sum of one value of each lane, in every lane.
__device__ inline float warp_sum(float value) {
  spread_sums<1, kWarp / 2, 1>(&value);
  return value;
}

}  // namespace rwkv::cuda

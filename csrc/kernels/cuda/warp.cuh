// Threads of a block in warps, and sums over lanes in a fixed order. Torch-free; device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace rwkv::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int lane() { return thread() % kWarp; }
__device__ inline int warp() { return thread() / kWarp; }

// n numbers next to each other that one instruction loads or stores, or the fewest there can be.
template <class Number, int n>
struct alignas(n * sizeof(Number) < 16 ? n * sizeof(Number) : 16) Pack {
  Number at[n];
};

// Sums each of n values over the lanes whose numbers differ in the bits `mask`, mask / 2, ..., `last`. While a lane has
// more than one value it keeps one half of them and hands the other over. Every value is added up in one and the same
// tree whatever n is, so that bits do not depend on how many there are.
//
// Leaves this lane's sums at values[0] and following (as many as lanes make it, at least one) and returns which of the
// n the first is, or -1 where a lane before this one holds the same.
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

// How many sums spread_sums leaves to a lane.
template <int n, int mask, int last>
constexpr int kSpread = mask < last || n == 1 ? n : kSpread<n / 2, mask / 2, last>;

}  // namespace rwkv::cuda

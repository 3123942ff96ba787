// Powers of two by which rows are scaled below 1, which loses nothing. Torch-free; device code.
#pragma once

#include "kernels/cuda/narrow.cuh"
#include "kernels/cuda/warp.cuh"

namespace rwkv::cuda {

// 2^e for e from -126 to 127.
__device__ inline float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// The exponent e of a finite number below 2^e but not below 2^(e - 1), within the range of power_of_two(e) and its
// inverse; 0 for numbers that have none.
__device__ inline int exponent_of(float largest) {
  const int biased = __float_as_int(largest) >> 23 & 0xff;
  if (largest == 0 || biased == 0xff) return 0;
  const int e = biased - 126;
  return e < -126 ? -126 : e > 126 ? 126 : e;
}

// Writes at(k) / power for k below K, rounded to Number, where the power of two is returned: the smallest above all
// |at(k)|. A block of so many threads has one row, and all of them must call this.
template <class Number, int threads, class At>
__device__ float scale_row(const At& at, int64_t K, Number* to) {
  constexpr int kWarps = threads / kWarp;
  __shared__ float parts[kWarps];
  float largest = 0;
#pragma unroll 4
  for (int64_t k = thread(); k < K; k += threads) largest = fmaxf(largest, fabsf(at(k)));  // without NaN
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
  if (lane() == 0) parts[warp()] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, parts[w]);
  const int e = exponent_of(largest);
  const float down = power_of_two(-e);
#pragma unroll 4
  for (int64_t k = thread(); k < K; k += threads) to[k] = narrow<Number>(at(k) * down);
  return power_of_two(e);
}

}  // namespace rwkv::cuda

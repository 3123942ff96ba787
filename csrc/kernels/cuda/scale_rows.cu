#include "kernels/cuda/scale_rows.h"

#include <cuda_fp16.h>

#include <cstring>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// 2^e for e from -126 to 127.
__device__ float power_of_two(int e) { return __int_as_float((e + 127) << 23); }

// The exponent e of a finite number below 2^e but not below 2^(e - 1), within the range of power_of_two(e) and its
// inverse; 0 for numbers that have none.
__device__ int exponent_of(float largest) {
  const int biased = __float_as_int(largest) >> 23 & 0xff;
  if (largest == 0 || biased == 0xff) return 0;
  const int e = biased - 126;
  return e < -126 ? -126 : e > 126 ? 126 : e;
}

// A block has one row.
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(const float* x, const float* columns, int64_t K, uint16_t* halves, float* powers) {
  __shared__ float parts[kWarps];
  const float* const row = x + blockIdx.x * K;
  const auto at = [=](int64_t k) { return columns ? row[k] * columns[k] : row[k]; };
  float largest = 0;
#pragma unroll 4
  for (int64_t k = thread(); k < K; k += kThreads) largest = fmaxf(largest, fabsf(at(k)));  // without NaN
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, mask));
  if (lane() == 0) parts[warp()] = largest;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, parts[w]);
  const int e = exponent_of(largest);
  const float down = power_of_two(-e);
  if (thread() == 0) powers[blockIdx.x] = power_of_two(e);
#pragma unroll 4
  for (int64_t k = thread(); k < K; k += kThreads) {
    const __half_raw half = __float2half_rn(at(k) * down);
    halves[blockIdx.x * K + k] = half.x;
  }
}

}  // namespace

cudaError_t scale_rows(const float* x, const float* columns, int64_t M, int64_t K, uint16_t* halves, float* powers,
                       cudaStream_t stream) {
  return launch(&scale_rows_kernel, grid_of(M), kThreads, 0, stream, x, columns, K, halves, powers);
}

}  // namespace rwkv::cuda

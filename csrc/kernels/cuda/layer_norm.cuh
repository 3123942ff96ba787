// LayerNorm and token shift, which every block that needs them computes itself. Torch-free; device code.
#pragma once

#include "kernels/cuda/warp.cuh"
#include "kernels/layer_norm.h"

namespace rwkv::cuda {

// In shared memory.
template <int rows, int threads>
struct RowStatistics {
  float mean[rows], scale[rows];
  float parts[threads / kWarp][rows];
};

// to[b] = finish(sum over the block's threads of mine[b]), in shared memory, with a barrier before and after.
template <int rows, int threads, class Finish>
__device__ void block_sums(float* mine, float (*parts)[rows], float* to, const Finish& finish) {
  const int index = spread_sums<rows, kWarp / 2, 1>(mine);
  if (index >= 0) parts[warp()][index] = mine[0];
  __syncthreads();
  if (thread() < rows) {
    float sum = 0;
    for (int w = 0; w < threads / kWarp; ++w) sum += parts[w][thread()];
    to[thread()] = finish(sum);
  }
  __syncthreads();
}

// Mean and 1 / sqrt(variance + eps) of `count` consecutive rows x of length C, at most `rows`. The variance is the sum
// of squared differences from the mean, which is accurate for rows far from zero. All threads must call this. Missing
// rows repeat the last one, so that no load depends on a branch.
template <int rows, int threads>
__device__ void row_statistics(const float* x, int count, int64_t C, float eps, RowStatistics<rows, threads>& out) {
  const float length = static_cast<float>(C);
  const auto at = [=](int b, int64_t c) { return x[(b < count ? b : count - 1) * C + c]; };
  float sums[rows] = {};
#pragma unroll 4
  for (int64_t c = thread(); c < C; c += threads)
#pragma unroll
    for (int b = 0; b < rows; ++b) sums[b] += at(b, c);
  block_sums<rows, threads>(sums, out.parts, out.mean, [=](float sum) { return sum / length; });
#pragma unroll
  for (int b = 0; b < rows; ++b) sums[b] = 0;
#pragma unroll 4
  for (int64_t c = thread(); c < C; c += threads)
#pragma unroll
    for (int b = 0; b < rows; ++b) {
      const float off = at(b, c) - out.mean[b];
      sums[b] = fmaf(off, off, sums[b]);
    }
  block_sums<rows, threads>(sums, out.parts, out.scale,
                            [=](float squares) { return 1.0f / sqrtf(squares / length + eps); });
}

// (x - mean) / sqrt(variance + eps) * weight + bias
__device__ inline float normalised(float x, float mean, float scale, float weight, float bias) {
  return fmaf((x - mean) * scale, weight, bias);
}

// now mix + last (1 - mix)
__device__ inline float token_shift(float now, float last, float mix) { return fmaf(now - last, mix, last); }

}  // namespace rwkv::cuda

// The third kernel of RWKV-7's time mixing: the recurrence of a head, GroupNorm, bonus and gate. Torch-free; device
// code.
#pragma once

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/time_mixing7_channels.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/mixing7_steps.h"

namespace rwkv::cuda {
namespace {

constexpr int kHeadWarps = 8;
constexpr int kHeadThreads = kHeadWarps * kWarp;

// The columns of a lane, those that are `lane` modulo 32; zeros after N.
template <int columns>
struct Columns {
  float at[columns];

  __device__ Columns(const float* from, int64_t N) {
#pragma unroll
    for (int j = 0; j < columns; ++j) at[j] = lane() + j * kWarp < N ? from[lane() + j * kWarp] : 0.0f;
  }
  // The sum over all columns of value(j), in every lane; columns after N do not count.
  template <class Value>
  static __device__ float sum(int64_t N, const Value& value) {
    float own = 0;
#pragma unroll
    for (int j = 0; j < columns; ++j)
      if (lane() + j * kWarp < N) own += value(j);
    return warp_sum(own);
  }
};

// A block computes one head of one sequence. A warp has whole rows of the state, `ahead` at a time.
template <int columns, int ahead>
__global__ void __launch_bounds__(kHeadThreads) head_kernel(TimeMixing7Step step, Recurrent at, float* gated) {
  using Lane = Columns<columns>;
  __shared__ float outputs[columns * kWarp];

  const int64_t N = step.N, h = blockIdx.x % step.H, b = blockIdx.x / step.H, first = b * step.A() + h * N;
  const Lane r(at.r + first, N), w(at.w + first, N), k(at.k + first, N);
  Lane kappa(at.kappa + first, N), given(at.a + first, N);
  const float norm = sqrtf(Lane::sum(N, [&](int j) { return kappa.at[j] * kappa.at[j]; }));
  const float scale = 1.0f / (norm < 1e-12f ? 1e-12f : norm);  // keeps NaN
#pragma unroll
  for (int j = 0; j < columns; ++j) kappa.at[j] *= scale, given.at[j] *= kappa.at[j];

  float* const state = step.wkv + slot_of(step.slots, b) * step.wkv_stride + h * N * N;
  for (int64_t begin = warp() * ahead; begin < N; begin += kHeadWarps * ahead) {
    float rows[ahead][columns], sums[ahead], v[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      v[i] = begin + i < N ? at.v[first + begin + i] : 0.0f;
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        const int64_t column = lane() + j * kWarp;
        rows[i][j] = begin + i < N && column < N ? state[(begin + i) * N + column] : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      float removed = 0;
#pragma unroll
      for (int j = 0; j < columns; ++j) removed = fmaf(rows[i][j], kappa.at[j], removed);
      removed = warp_sum(removed);
      sums[i] = 0;
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        const int64_t column = lane() + j * kWarp;
        const float next = fmaf(v[i], k.at[j], rows[i][j] * w.at[j] - removed * given.at[j]);
        if (begin + i < N && column < N) state[(begin + i) * N + column] = next;
        sums[i] = fmaf(next, r.at[j], sums[i]);
      }
    }
    const int index = spread_sums<ahead, kWarp / 2, 1>(sums);
    if (index >= 0 && begin + index < N) outputs[begin + index] = sums[0];
  }
  __syncthreads();
  if (warp() > 0) return;

  const Lane y(outputs, N), v(at.v + first, N), r_k(step.r_k + h * N, N), gate(at.gate + first, N);
  const float length = static_cast<float>(N), mean = Lane::sum(N, [&](int j) { return y.at[j]; }) / length;
  const float squares = Lane::sum(N, [&](int j) { return (y.at[j] - mean) * (y.at[j] - mean); });
  const float deviation = 1.0f / sqrtf(squares / length + step.heads.eps);
  const float bonus = Lane::sum(N, [&](int j) { return r.at[j] * k.at[j] * r_k.at[j]; });
  const Lane weight(step.heads.weight + h * N, N), bias(step.heads.bias + h * N, N);
#pragma unroll
  for (int j = 0; j < columns; ++j)
    if (const int64_t c = lane() + j * kWarp; c < N)
      gated[first + c] =
          fmaf(bonus, v.at[j], normalised(y.at[j], mean, deviation, weight.at[j], bias.at[j])) * gate.at[j];
}

// The number of rows ahead is such that their numbers fit into registers.
cudaError_t launch_head(const TimeMixing7Step& step, const Recurrent& at, float* gated, cudaStream_t stream) {
  const auto with = [&](auto kernel) {
    return launch(kernel, grid_of(step.B * step.H), kHeadThreads, 0, stream, step, at, gated);
  };
  if (step.N <= kWarp) return with(&head_kernel<1, 4>);
  if (step.N <= 2 * kWarp) return with(&head_kernel<2, 8>);
  if (step.N <= 4 * kWarp) return with(&head_kernel<4, 8>);
  if (step.N <= 8 * kWarp) return with(&head_kernel<8, 2>);
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace rwkv::cuda

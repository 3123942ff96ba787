// The second kernel of RWKV-7's time mixing: the second factors of the low-rank products, and the equations of single
// channels. Torch-free; device code.
#pragma once

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/mixing7_steps.h"

namespace rwkv::cuda {
namespace {

// What the recurrence reads, (B, A) each. The first kernel writes r, k and v, and this one the others, and replaces k
// and v.
struct Recurrent {
  float *r, *w, *k, *v, *kappa, *a, *gate;
};

// The second factors with their inputs, in this order: w, a, g, v.
constexpr int kFactors = 4;
struct Factors {
  Matrix matrix[kFactors];        // (A, rank); the rank of v may be 0
  const float* hidden[kFactors];  // (B, rank)
};

constexpr int kFactorSlices = 2;
constexpr int kChannelThreads = kFactors * kFactorSlices * kWarp;

// A block computes 16 channels; two warps multiply each factor.
template <class Weight, int batch>
__global__ void __launch_bounds__(kChannelThreads, kResident<Weight, batch, kChannelThreads>)
    channels_kernel(TimeMixing7Step step, Factors factors, Recurrent at) {
  using Product = TileProduct<Weight, batch, kFactorSlices>;
  alignas(16) __shared__ float staged[kFactors][batch * Product::kChunk];
  __shared__ float parts[kFactors][kFactorSlices * Product::kSums];

  const int64_t A = step.A();
  const int factor = warp() / kFactorSlices, slice = warp() % kFactorSlices;
  const void* weights = nullptr;
  int64_t rank = 0, most = 0;
#pragma unroll
  for (int f = 0; f < kFactors; ++f) {
    const int64_t K = factors.matrix[f].K;
    if (f == factor) weights = factors.matrix[f].weights, rank = K;
    most = K > most ? K : most;
  }
  Product product(tile_block<Weight>(weights, blockIdx.x, rank), rank, slice, rank > 0);

  // Ranks are small, so only as much is staged as is multiplied.
  const Group rows = Group::mine<batch>(step.B);
  multiply_all(product, most, staged[factor], [&](int64_t first) {
    const int64_t left = (most - first + Product::kRound - 1) / Product::kRound * Product::kRound;
    const int width = static_cast<int>(left < Product::kChunk ? left : Product::kChunk);
#pragma unroll
    for (int f = 0; f < kFactors; ++f) {
      const int64_t K = factors.matrix[f].K;
      for (int b = warp(); b < batch; b += kChannelThreads / kWarp) {
        const float* const hidden = factors.hidden[f] + (rows.first + b) * K + first;
#pragma unroll 4
        for (int i = lane(); i < width; i += kWarp)
          staged[f][b * Product::kChunk + i] = b < rows.count && first + i < K ? hidden[i] : 0.0f;
      }
    }
  });
  product.store(parts[factor] + slice * Product::kSums);
  __syncthreads();

  for (int i = thread(); i < Product::kSums; i += kChannelThreads) {
    const int b = i / kTileRows;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b >= rows.count || n >= A) continue;
    float sums[kFactors];
#pragma unroll
    for (int f = 0; f < kFactors; ++f) sums[f] = sum_of_slices<Product>(parts[f], i);
    const auto& [low_w, low_a, low_g, low_v] = sums;
    const int64_t c = (rows.first + b) * A + n;
    const float k = at.k[c], v = at.v[c], a = sigmoid(step.a0[n] + low_a);
    at.w[c] = exp_nonpositive(kDecay7 * sigmoid(step.w0[n] + low_w));
    at.a[c] = a;
    at.gate[c] = low_g;
    at.kappa[c] = k * step.k_k[n];
    at.k[c] = k * (1 + (a - 1) * step.k_a[n]);
    if (step.mixes_values())
      at.v[c] = v + (step.first[c] - v) * sigmoid(step.v0[n] + low_v);
    else
      step.first[c] = v;
  }
}

cudaError_t launch_channels(const TimeMixing7Step& step, const Factors& factors, const Recurrent& at,
                            cudaStream_t stream) {
  return for_format(factors.matrix[0].format, [&]<class Weight>(Weight) {
    if constexpr (kHasColumns<Weight>)
      return cudaErrorInvalidValue;
    else
      return for_batch(step.B, [&](auto batch) {
        return launch(&channels_kernel<Weight, batch()>, grid_of(tile_blocks(step.A()), pieces(step.B, batch())),
                      kChannelThreads, 0, stream, step, factors, at);
      });
  });
}

}  // namespace
}  // namespace rwkv::cuda

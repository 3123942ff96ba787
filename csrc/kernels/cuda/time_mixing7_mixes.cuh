// The first kernel of RWKV-7's time mixing: LayerNorm, token shift, and all products of the mixes. Torch-free; device
// code.
#pragma once

#include <array>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/staging.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/mixing7_steps.h"

namespace rwkv::cuda {
namespace {

enum class Activation { none, tanh, sigmoid };

// out = activation(W mix(LayerNorm(x), shift)); out is (B, N).
struct MixProduct {
  Matrix matrix;
  const float* mix;  // (C,)
  float* out;
  Activation activation = Activation::none;
};

constexpr int kMixProducts = 7;
using AllMixProducts = std::array<MixProduct, kMixProducts>;

// Those whose weights have one format.
struct MixProducts {
  MixProduct at[kMixProducts];
  int64_t begins[kMixProducts];  // the first CUDA block of each; beyond all blocks if there are fewer products
  int64_t blocks;

  MixProducts(const AllMixProducts& all, Format format) : at{}, blocks(0) {
    int count = 0;
    for (const MixProduct& product : all) {
      if (product.matrix.format != format || product.matrix.N == 0) continue;
      at[count] = product, begins[count++] = blocks;
      blocks += tile_blocks(product.matrix.N);
    }
    while (count < kMixProducts) begins[count++] = blocks;
  }
};

__device__ inline float activated(Activation activation, float x) {
  return activation == Activation::tanh ? hyperbolic_tangent(x) : activation == Activation::sigmoid ? sigmoid(x) : x;
}

constexpr int kMixSlices = 8;
constexpr int kMixThreads = kMixSlices * kWarp;

// A block computes 16 outputs of one product. `now` receives LayerNorm(x), (B, C), unless it is null.
template <class Weight, int batch>
__global__ void __launch_bounds__(kMixThreads, kResident<Weight, batch, kMixThreads>)
    mixes_kernel(TimeMixing7Step step, MixProducts products, float* now_of_all) {
  using Product = TileProduct<Weight, batch, kMixSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kMixSlices * Product::kSums];
  __shared__ RowStatistics<batch, kMixThreads> statistics;
  __shared__ int64_t state[batch];

  MixProduct mine = products.at[0];
  int64_t begin = 0;
#pragma unroll
  for (int i = 1; i < kMixProducts; ++i)
    if (blockIdx.x >= products.begins[i]) mine = products.at[i], begin = products.begins[i];
  const int64_t C = step.C, N = mine.matrix.N, block = blockIdx.x - begin;
  Product product(tile_block<Weight>(mine.matrix.weights, block, C), C, warp());

  const Group rows = Group::mine<batch>(step.B);
  const float* const x = step.x + rows.first * C;
  if (thread() < rows.count) state[thread()] = slot_of(step.slots, rows.first + thread());
  row_statistics(x, rows.count, C, step.norm.eps, statistics);
  multiply_all(product, C, staged, [&](int64_t first) {
    struct Inputs {
      float x, weight, bias, last, mix, column;
    };
    const auto place = [&](int i) { return Staged<Product::kChunk>(i, first, rows.count, C); };
    load_ahead<batch * Product::kChunk, kMixThreads, kAheadOf<Weight, batch, kHasColumns<Weight> ? 6 : 5>>(
        [&](int i) {
          const auto [b, c, exists] = place(i);
          return Inputs{x[b * C + c],      step.norm.weight[c],
                        step.norm.bias[c], step.shift[state[b] * step.shift_stride + c],
                        mine.mix[c],       column_scale<Weight>(mine.matrix.columns, c)};
        },
        [&](int i, const Inputs& in) {
          const auto [b, c, exists] = place(i);
          const float now = normalised(in.x, statistics.mean[b], statistics.scale[b], in.weight, in.bias);
          if (now_of_all && blockIdx.x == 0 && exists) now_of_all[(rows.first + b) * C + c] = now;
          staged[i] = exists ? scaled<Weight>(token_shift(now, in.last, in.mix), in.column) : 0.0f;
        });
  });
  product.store(parts + warp() * Product::kSums);
  __syncthreads();

  for (int i = thread(); i < Product::kSums; i += kMixThreads) {
    const int b = i / kTileRows;
    const int64_t n = block * kTileRows + i % kTileRows;
    if (b >= rows.count || n >= N) continue;
    const float sum = times_row<Weight>(sum_of_slices<Product>(parts, i), mine.matrix.rows, n);
    mine.out[(rows.first + b) * N + n] = activated(mine.activation, sum);
  }
}

// One launch for each format.
cudaError_t launch_mixes(const TimeMixing7Step& step, const AllMixProducts& all, float* now, cudaStream_t stream) {
  for (const Format format : {Format::fp32, Format::bf16, Format::fp16, Format::int8, Format::int4}) {
    const MixProducts products(all, format);
    if (products.blocks == 0) continue;
    const cudaError_t status = for_format(format, [&]<class Weight>(Weight) {
      return for_batch(step.B, [&](auto batch) {
        return launch(&mixes_kernel<Weight, batch()>, grid_of(products.blocks, pieces(step.B, batch())), kMixThreads, 0,
                      stream, step, products, now);
      });
    });
    if (status != cudaSuccess) return status;
    now = nullptr;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace rwkv::cuda

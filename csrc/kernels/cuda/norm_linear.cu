// Every block needs mean and variance of its rows. It begins to load its weights first: a block's first reads take its
// share of the memory's bandwidth longer than the statistics of few rows, which come from caches. With more rows, to
// normalise them once in a kernel of their own takes less time than in each of thousands of blocks.
#include "kernels/cuda/norm_linear.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/embed_norm.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/tile_product.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kSlices = 8;
constexpr int kThreads = kSlices * kWarp;

// A block computes 16 outputs of all rows.
template <class Weight, int batch>
__global__ void __launch_bounds__(kThreads, kResident<Weight, batch, kThreads>)
    norm_linear_kernel(const float* x, LayerNorm norm, Matrix matrix, int rows, float* y) {
  using Product = TileProduct<Weight, batch, kSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kSlices * Product::kSums];
  __shared__ RowStatistics<batch, kThreads> statistics;

  const int64_t N = matrix.N, K = matrix.K;
  Product product(tile_block<Weight>(matrix.weights, blockIdx.x, K), K, warp());
  row_statistics(x, rows, K, norm.eps, statistics);
  multiply_all(product, K, staged, [&](int64_t first) {
    struct Inputs {
      float x, weight, bias, column;
    };
    const auto place = [&](int i) { return Staged<Product::kChunk>(i, first, rows, K); };
    load_ahead<batch * Product::kChunk, kThreads, kAheadOf<Weight, batch, kHasColumns<Weight> ? 4 : 3>>(
        [&](int i) {
          const auto [b, k, exists] = place(i);
          return Inputs{x[b * K + k], norm.weight[k], norm.bias[k], column_scale<Weight>(matrix.columns, k)};
        },
        [&](int i, const Inputs& in) {
          const auto [b, k, exists] = place(i);
          const float now = normalised(in.x, statistics.mean[b], statistics.scale[b], in.weight, in.bias);
          staged[i] = exists ? scaled<Weight>(now, in.column) : 0.0f;
        });
  });
  product.store(parts + warp() * Product::kSums);
  __syncthreads();
  for (int i = thread(); i < Product::kSums; i += kThreads) {
    const int b = i / kTileRows;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b < rows && n < N) y[b * N + n] = times_row<Weight>(sum_of_slices<Product>(parts, i), matrix.rows, n);
  }
}

}  // namespace

cudaError_t norm_linear(const float* x, const LayerNorm& norm, const Matrix& matrix, int64_t B, float* normalised,
                        float* y, cudaStream_t stream) {
  if (B > kNormalisedByBlocks) {
    const cudaError_t status = embed_norm<float>(nullptr, B, x, matrix.K, norm, {}, normalised, stream);
    return status == cudaSuccess ? linear(normalised, matrix, B, y, stream) : status;
  }
  if (B == 0) return cudaSuccess;
  return for_format(matrix.format, [&]<class Weight>(Weight) {
    return for_batch<kNormalisedByBlocks>(B, [&](auto batch) {
      return launch(&norm_linear_kernel<Weight, batch()>, grid_of(tile_blocks(matrix.N)), kThreads, 0, stream, x, norm,
                    matrix, static_cast<int>(B), y);
    });
  });
}

}  // namespace rwkv::cuda

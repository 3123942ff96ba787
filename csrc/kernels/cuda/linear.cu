#include "kernels/cuda/linear.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tile_product.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kSlices = 8;
constexpr int kThreads = kSlices * kWarp;

// A block computes 16 outputs.
template <class Weight, int batch>
__global__ void __launch_bounds__(kThreads, kResident<Weight, batch, kThreads>)
    linear_kernel(const float* x, Matrix matrix, int64_t B, float* y) {
  using Product = TileProduct<Weight, batch, kSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kSlices * Product::kSums];

  const int64_t N = matrix.N, K = matrix.K;
  Product product(tile_block<Weight>(matrix.weights, blockIdx.x, K), K, warp());
  const Group rows = Group::mine<batch>(B);
  multiply_all(product, K, staged, [&](int64_t first) {
    stage_rows<Weight, Product, batch, kThreads>(x + rows.first * K, rows.count, K, matrix.columns, first, staged);
  });
  product.store(parts + warp() * Product::kSums);
  __syncthreads();
  for (int i = thread(); i < Product::kSums; i += kThreads) {
    const int b = i / kTileRows;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b < rows.count && n < N)
      y[(rows.first + b) * N + n] = times_row<Weight>(sum_of_slices<Product>(parts, i), matrix.rows, n);
  }
}

}  // namespace

cudaError_t linear(const float* x, const Matrix& matrix, int64_t B, float* y, cudaStream_t stream) {
  return for_format(matrix.format, [&]<class Weight>(Weight) {
    return for_batch(B, [&](auto batch) {
      return launch(&linear_kernel<Weight, batch()>, grid_of(tile_blocks(matrix.N), pieces(B, batch())), kThreads, 0,
                    stream, x, matrix, B, y);
    });
  });
}

}  // namespace rwkv::cuda

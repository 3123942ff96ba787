#include "kernels/cuda/linear.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tile_product.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kSlices = 8;
constexpr int kThreads = kSlices * kWarp;

// A block makes 16 outputs.
template <class Weight, int batch>
__global__ void __launch_bounds__(kThreads, 1)
    linear_kernel(const float* x, const Weight* tiles, int64_t B, int64_t N, int64_t K, float* y) {
  using Product = TileProduct<Weight, batch, kSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kSlices * Product::kSums];

  Product product(tile_block(tiles, blockIdx.x, K), K, warp());
  const Group rows = Group::mine<batch>(B);
  multiply_all(product, K, staged, [&](int64_t first) {
    stage_rows<Product, batch, kThreads>(x + rows.first * K, rows.count, K, first, staged);
  });
  product.store(parts + warp() * Product::kSums);
  __syncthreads();
  for (int i = thread(); i < Product::kSums; i += kThreads) {
    const int b = i / kTileRows;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b < rows.count && n < N) y[(rows.first + b) * N + n] = sum_of_slices<Product>(parts, i);
  }
}

}  // namespace

template <class Weight>
cudaError_t linear(const float* x, const Weight* tiles, int64_t B, int64_t N, int64_t K, float* y,
                   cudaStream_t stream) {
  return for_batch(B, [=](auto batch) {
    return launch(&linear_kernel<Weight, batch()>, grid_of(tile_blocks(N), pieces(B, batch())), kThreads, 0, stream, x,
                  tiles, B, N, K, y);
  });
}

template cudaError_t linear(const float*, const float*, int64_t, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t linear(const float*, const Bfloat16*, int64_t, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t linear(const float*, const Float16*, int64_t, int64_t, int64_t, float*, cudaStream_t);

}  // namespace rwkv::cuda

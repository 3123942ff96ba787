#include "kernels/cuda/residual_product.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/slots.h"

namespace rwkv::cuda {
namespace {

constexpr int kOutputSlices = 8;
constexpr int kOutputThreads = kOutputSlices * kWarp;

// A block computes 16 outputs.
template <class Weight, int batch>
__global__ void __launch_bounds__(kOutputThreads, kResident<Weight, batch, kOutputThreads>)
    output_kernel(ResidualProduct of) {
  using Product = TileProduct<Weight, batch, kOutputSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kOutputSlices * Product::kSums];

  const int64_t N = of.matrix.N, K = of.matrix.K;
  Product product(tile_block<Weight>(of.matrix.weights, blockIdx.x, K), K, warp());
  const Group rows = Group::mine<batch>(of.B);
  multiply_all(product, K, staged, [&](int64_t first) {
    stage_rows<Weight, Product, batch, kOutputThreads>(of.inputs + rows.first * K, rows.count, K, of.matrix.columns,
                                                       first, staged);
  });
  product.store(parts + warp() * Product::kSums);
  __syncthreads();
  for (int i = thread(); i < Product::kSums; i += kOutputThreads) {
    const int b = i / kTileRows;
    const int64_t n = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b >= rows.count || n >= N) continue;
    const int64_t at = (rows.first + b) * N + n;
    of.y[at] = of.x[at] + times_row<Weight>(sum_of_slices<Product>(parts, i), of.matrix.rows, n);
    of.shift[slot_of(of.slots, rows.first + b) * of.shift_stride + n] = of.now[at];
  }
}

}  // namespace

cudaError_t residual_product(const ResidualProduct& of, cudaStream_t stream) {
  return for_format(of.matrix.format, [&]<class Weight>(Weight) {
    return for_batch(of.B, [&](auto batch) {
      return launch(&output_kernel<Weight, batch()>, grid_of(tile_blocks(of.matrix.N), pieces(of.B, batch())),
                    kOutputThreads, 0, stream, of);
    });
  });
}

}  // namespace rwkv::cuda

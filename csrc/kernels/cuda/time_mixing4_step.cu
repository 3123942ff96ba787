// There are two kernels. In the first, a block computes k, v and r of 16 channels, so that the recurrence and the gate
// need no global memory for them. The second is the output product. Every block of the first kernel reads the old shift
// row, so the new one is written to scratch, and replaces it in the second kernel. Only one thread uses the
// recurrence's state of a channel, so it is replaced in the first kernel.
#include "kernels/cuda/time_mixing4_step.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/wkv4_step.h"

namespace rwkv::cuda {
namespace {

struct Scratch {
  float* now;    // (B, C), LayerNorm(x)
  float* gated;  // (B, A), sigmoid(r) wkv
};

constexpr int kMatrices = 3;  // k, v, r
constexpr int kMatrixSlices = 4;
constexpr int kGatedThreads = kMatrices * kMatrixSlices * kWarp;

// gated = sigmoid(r) wkv(k, v) for 16 channels, whose state is replaced; warps 0 to 3 compute k, the next v, the last
// r.
template <class Weight, int batch>
__global__ void __launch_bounds__(kGatedThreads, kResident<batch, kGatedThreads>)
    gated_kernel(TimeMixing4Step step, Scratch scratch) {
  using Product = TileProduct<Weight, batch, kMatrixSlices>;
  alignas(16) __shared__ float staged[kMatrices][batch * Product::kChunk];
  __shared__ float parts[kMatrices][kMatrixSlices * Product::kSums];
  __shared__ RowStatistics<batch, kGatedThreads> statistics;
  __shared__ int64_t state[batch];

  const int64_t C = step.C, A = step.A;
  const int matrix = warp() / kMatrixSlices, slice = warp() % kMatrixSlices;
  const Weight *const key = step.key.as<Weight>(), *const value = step.value.as<Weight>(),
                      *const receptance = step.receptance.as<Weight>(),
                      *const weights = matrix == 0   ? key
                                       : matrix == 1 ? value
                                                     : receptance;
  Product product(tile_block(weights, blockIdx.x, C), C, slice);

  const Group rows = Group::mine<batch>(step.B);
  const float* const x = step.x + rows.first * C;
  if (thread() < rows.count) state[thread()] = slot_of(step.slots, rows.first + thread());
  row_statistics(x, rows.count, C, step.norm.eps, statistics);
  multiply_all(product, C, staged[matrix], [&](int64_t first) {
#pragma unroll 2
    for (int i = thread(); i < batch * Product::kChunk; i += kGatedThreads) {
      const int b = i / Product::kChunk;
      const int64_t c = first + i % Product::kChunk;
      float k = 0, v = 0, r = 0;
      if (b < rows.count && c < C) {
        const float now = normalised(x[b * C + c], statistics.mean[b], statistics.scale[b], step.norm, c);
        const float last = step.shift[state[b] * step.shift_stride + c];
        k = scaled<Weight>(token_shift(now, last, step.mix_k[c]), step.key.columns, c);
        v = scaled<Weight>(token_shift(now, last, step.mix_v[c]), step.value.columns, c);
        r = scaled<Weight>(token_shift(now, last, step.mix_r[c]), step.receptance.columns, c);
        if (blockIdx.x == 0) scratch.now[(rows.first + b) * C + c] = now;
      }
      staged[0][i] = k, staged[1][i] = v, staged[2][i] = r;
    }
  });
  product.store(parts[matrix] + slice * Product::kSums);
  __syncthreads();

  for (int i = thread(); i < Product::kSums; i += kGatedThreads) {
    const int b = i / kTileRows;
    const int64_t a = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b >= rows.count || a >= A) continue;
    const float k = scaled<Weight>(sum_of_slices<Product>(parts[0], i), step.key.rows, a),
                v = scaled<Weight>(sum_of_slices<Product>(parts[1], i), step.value.rows, a),
                r = scaled<Weight>(sum_of_slices<Product>(parts[2], i), step.receptance.rows, a);
    const int64_t at = state[b] * step.wkv_stride + a;
    const Wkv4State<float> before{step.num[at], step.den[at], step.max[at]};
    scratch.gated[(rows.first + b) * A + a] = sigmoid(r) * wkv4_output(step.first[a], k, v, before);
    const auto after = wkv4_update(step.decay[a], k, v, before);
    step.num[at] = after.num, step.den[at] = after.den, step.max[at] = after.max;
  }
}

constexpr int kOutputSlices = 8;
constexpr int kOutputThreads = kOutputSlices * kWarp;

// y = x + Wo gated for 16 outputs, and their part of the new shift row.
template <class Weight, int batch>
__global__ void __launch_bounds__(kOutputThreads, kResident<batch, kOutputThreads>)
    output_kernel(TimeMixing4Step step, Scratch scratch) {
  using Product = TileProduct<Weight, batch, kOutputSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kOutputSlices * Product::kSums];

  const int64_t C = step.C, A = step.A;
  Product product(tile_block(step.output.as<Weight>(), blockIdx.x, A), A, warp());
  const Group rows = Group::mine<batch>(step.B);
  multiply_all(product, A, staged, [&](int64_t first) {
    stage_rows<Weight, Product, batch, kOutputThreads>(scratch.gated + rows.first * A, rows.count, A,
                                                       step.output.columns, first, staged);
  });
  product.store(parts + warp() * Product::kSums);
  __syncthreads();
  for (int i = thread(); i < Product::kSums; i += kOutputThreads) {
    const int b = i / kTileRows;
    const int64_t c = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b >= rows.count || c >= C) continue;
    const int64_t at = (rows.first + b) * C + c;
    step.y[at] = step.x[at] + scaled<Weight>(sum_of_slices<Product>(parts, i), step.output.rows, c);
    step.shift[slot_of(step.slots, rows.first + b) * step.shift_stride + c] = scratch.now[at];
  }
}

}  // namespace

int64_t scratch_bytes(const TimeMixing4Step& step) {
  return step.B * (step.C + step.A) * static_cast<int64_t>(sizeof(float));
}

cudaError_t time_mixing4_step(const TimeMixing4Step& step, void* scratch, cudaStream_t stream) {
  float* const now = static_cast<float*>(scratch);
  return for_format(step.key.format, [&]<class Weight>(Weight) {
    return for_batch(step.B, [&](auto batch) {
      const int64_t groups = pieces(step.B, batch());
      const Scratch parts{now, now + step.B * step.C};
      const cudaError_t status = launch(&gated_kernel<Weight, batch()>, grid_of(tile_blocks(step.A), groups),
                                        kGatedThreads, 0, stream, step, parts);
      if (status != cudaSuccess) return status;
      return launch(&output_kernel<Weight, batch()>, grid_of(tile_blocks(step.C), groups), kOutputThreads, 0, stream,
                    step, parts);
    });
  });
}

}  // namespace rwkv::cuda

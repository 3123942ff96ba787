// There are two kernels. In the first, a block computes k, v and r of 16 channels, so that the recurrence and the gate
// need no global memory for them. The second is the output product. Every block of the first kernel reads the old shift
// row, so the new one is written to scratch, and replaces it in the second kernel. Only one thread uses the
// recurrence's state of a channel, so it is replaced in the first kernel.
//
// A kernel is compiled for one format of weights. If k, v and r differ in their formats, the first kernel is launched
// once for each format; the last launch finds the products of the others in scratch.
#include "kernels/cuda/time_mixing4_step.h"

#include <bit>
#include <type_traits>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/residual_product.h"
#include "kernels/cuda/staging.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/wkv4_step.h"

namespace rwkv::cuda {
namespace {

struct Scratch {
  float* now;       // (B, C), LayerNorm(x)
  float* gated;     // (B, A), sigmoid(r) wkv
  float* products;  // (3, B, A), k, v and r; only if their matrices differ in format
};

constexpr int kMatrices = 3;  // k, v, r

// The part of one launch of the first kernel.
struct Part {
  unsigned mine;  // bit i: multiplies matrix i
  bool last;

  __host__ __device__ bool has(int matrix) const { return mine >> matrix & 1; }
};

constexpr int kMatrixSlices = 4;
constexpr int kGatedThreads = kMatrices * kMatrixSlices * kWarp;

// gated = sigmoid(r) wkv(k, v) for 16 channels, whose state is replaced; warps 0 to 3 compute k, the next v, the last
// r. Matrices in `step` that belong to other parts are not read, but their columns are.
template <class Weight, int batch>
__global__ void __launch_bounds__(kGatedThreads, kResident<Weight, batch, kGatedThreads>)
    gated_kernel(TimeMixing4Step step, Scratch scratch, Part part) {
  using Product = TileProduct<Weight, batch, kMatrixSlices>;
  alignas(16) __shared__ float staged[kMatrices][batch * Product::kChunk];
  __shared__ float parts[kMatrices][kMatrixSlices * Product::kSums];
  __shared__ RowStatistics<batch, kGatedThreads> statistics;
  __shared__ int64_t state[batch];

  const int64_t C = step.C, A = step.A;
  const int matrix = warp() / kMatrixSlices, slice = warp() % kMatrixSlices;
  const void *const key = step.key.weights, *const value = step.value.weights,
                    *const receptance = step.receptance.weights,
                    *const weights = matrix == 0   ? key
                                     : matrix == 1 ? value
                                                   : receptance;
  Product product(tile_block<Weight>(weights, blockIdx.x, C), C, slice, part.has(matrix));

  const Group rows = Group::mine<batch>(step.B);
  const float* const x = step.x + rows.first * C;
  if (thread() < rows.count) state[thread()] = slot_of(step.slots, rows.first + thread());
  row_statistics(x, rows.count, C, step.norm.eps, statistics);
  multiply_all(product, C, staged[matrix], [&](int64_t first) {
    struct Inputs {
      float x, weight, bias, last, mixes[kMatrices], columns[kMatrices];
    };
    const auto place = [&](int i) { return Staged<Product::kChunk>(i, first, rows.count, C); };
    load_ahead<batch * Product::kChunk, kGatedThreads, kAheadOf<Weight, batch, kHasColumns<Weight> ? 10 : 7>>(
        [&](int i) {
          const auto [b, c, exists] = place(i);
          return Inputs{x[b * C + c],
                        step.norm.weight[c],
                        step.norm.bias[c],
                        step.shift[state[b] * step.shift_stride + c],
                        {step.mix_k[c], step.mix_v[c], step.mix_r[c]},
                        {column_scale<Weight>(step.key.columns, c), column_scale<Weight>(step.value.columns, c),
                         column_scale<Weight>(step.receptance.columns, c)}};
        },
        [&](int i, const Inputs& in) {
          const auto [b, c, exists] = place(i);
          const float now = normalised(in.x, statistics.mean[b], statistics.scale[b], in.weight, in.bias);
          if (blockIdx.x == 0 && exists) scratch.now[(rows.first + b) * C + c] = now;
#pragma unroll
          for (int m = 0; m < kMatrices; ++m)
            staged[m][i] = exists ? scaled<Weight>(token_shift(now, in.last, in.mixes[m]), in.columns[m]) : 0.0f;
        });
  });
  product.store(parts[matrix] + slice * Product::kSums);
  __syncthreads();

  for (int i = thread(); i < Product::kSums; i += kGatedThreads) {
    const int b = i / kTileRows;
    const int64_t a = static_cast<int64_t>(blockIdx.x) * kTileRows + i % kTileRows;
    if (b >= rows.count || a >= A) continue;
    const float* const scales[kMatrices] = {step.key.rows, step.value.rows, step.receptance.rows};
    float products[kMatrices];
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      float* const kept = scratch.products + (m * step.B + rows.first + b) * A + a;
      if (part.has(m)) {
        products[m] = times_row<Weight>(sum_of_slices<Product>(parts[m], i), scales[m], a);
        if (!part.last) *kept = products[m];
      } else {
        products[m] = part.last ? *kept : 0;
      }
    }
    if (!part.last) continue;
    const auto& [k, v, r] = products;
    const int64_t at = state[b] * step.wkv_stride + a;
    const Wkv4State<float> before{step.num[at], step.den[at], step.max[at]};
    scratch.gated[(rows.first + b) * A + a] = sigmoid(r) * wkv4_output(step.first[a], k, v, before);
    const auto after = wkv4_update(step.decay[a], k, v, before);
    step.num[at] = after.num, step.den[at] = after.den, step.max[at] = after.max;
  }
}

// Three matrices' inputs of 16 rows, 256 of each for int4 weights, would not fit into shared memory.
template <class Weight>
constexpr int kMostGatedRows = std::is_same_v<Weight, Int4> ? 8 : kMostRows;

cudaError_t launch_gated(TimeMixing4Step step, const Scratch& scratch, Part part, cudaStream_t stream) {
  Matrix* const matrices[kMatrices] = {&step.key, &step.value, &step.receptance};
  const Matrix mine = *matrices[std::countr_zero(part.mine)];
  for (int m = 0; m < kMatrices; ++m)
    if (!part.has(m)) *matrices[m] = mine;
  return for_format(mine.format, [&]<class Weight>(Weight) {
    return for_batch<kMostGatedRows<Weight>>(step.B, [&](auto batch) {
      return launch(&gated_kernel<Weight, batch()>, grid_of(tile_blocks(step.A), pieces(step.B, batch())),
                    kGatedThreads, 0, stream, step, scratch, part);
    });
  });
}

bool same_format(const TimeMixing4Step& step) {
  return step.key.format == step.value.format && step.key.format == step.receptance.format;
}

}  // namespace

int64_t scratch_bytes(const TimeMixing4Step& step) {
  const int64_t products = same_format(step) ? 0 : kMatrices * step.A;
  return step.B * (step.C + step.A + products) * static_cast<int64_t>(sizeof(float));
}

cudaError_t time_mixing4_step(const TimeMixing4Step& step, void* scratch, cudaStream_t stream) {
  float* const now = static_cast<float*>(scratch);
  float* const gated = now + step.B * step.C;
  const Scratch parts{now, gated, gated + step.B * step.A};
  const Format formats[kMatrices] = {step.key.format, step.value.format, step.receptance.format};
  constexpr unsigned kAll = (1u << kMatrices) - 1;
  for (unsigned done = 0; done != kAll;) {
    const Format format = formats[std::countr_one(done)];
    unsigned mine = 0;
    for (int m = 0; m < kMatrices; ++m)
      if (formats[m] == format) mine |= 1u << m;
    done |= mine;
    const cudaError_t status = launch_gated(step, parts, {mine, done == kAll}, stream);
    if (status != cudaSuccess) return status;
  }
  return residual_product({step.B, step.output, step.x, gated, step.y, now, step.shift, step.shift_stride, step.slots},
                          stream);
}

}  // namespace rwkv::cuda

// There are two kernels. The first computes relu(k)^2, with a bit for each input that is not zero, and sigmoid(r). The
// second reads those rows of the value matrix whose bits are set. Every block of the first kernel reads the old shift
// row, so the new one is written to scratch, and replaces it in the second kernel.
//
// Without a receptance, as in RWKV-7, nothing is gated.
//
// A kernel is compiled for one format of weights. If key and receptance differ in their formats, the first kernel is
// launched once for each.
#include "kernels/cuda/channel_mixing4_step.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/channel_mixing4_sparse.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/staging.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/math.h"

namespace rwkv::cuda {
namespace {

// The number of rows in a group.
int64_t group_rows(int64_t B) {
  int64_t rows = 0;
  for_batch(B, [&](auto batch) {
    rows = batch();
    return cudaSuccess;
  });
  return rows;
}

// The number of rows in the buffers, padded to full groups.
int64_t padded_rows(int64_t B) { return pieces(B, group_rows(B)) * group_rows(B); }

// Whether row b of a group shares its state's row with a neighbour, as two or more padding rows of a batch do. Nothing
// reads their results, so they need no rows of the value matrix.
__device__ inline bool is_padding(const int64_t* state, int b, int count) {
  return (b > 0 && state[b - 1] == state[b]) || (b + 1 < count && state[b + 1] == state[b]);
}

constexpr int kSlices = 4;
constexpr int kBlocks = kWordBits / kTileRows;  // of 16 outputs a CUDA block makes
constexpr int kInnerThreads = kBlocks * kSlices * kWarp;

// A block computes 32 outputs of the key or, in the blocks after those, of the receptance. The blocks of a launch are
// numbered from `first_block`.
template <class Weight, int batch>
__global__ void __launch_bounds__(kInnerThreads, kResident<Weight, batch, kInnerThreads>)
    inner_kernel(ChannelMixing4Step step, Scratch scratch, int64_t first_block) {
  using Product = TileProduct<Weight, batch, kSlices>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kBlocks][kSlices * Product::kSums];
  __shared__ RowStatistics<batch, kInnerThreads> statistics;
  __shared__ int64_t state[batch];

  const int64_t C = step.C, F = step.F, words = (F + kWordBits - 1) / kWordBits;
  const int64_t mine = first_block + blockIdx.x;
  const bool is_key = mine < words;
  const int64_t word = is_key ? mine : mine - words, width = is_key ? F : C;
  const int64_t block = word * kBlocks + warp() / kSlices;
  const void *const key = step.key.weights, *const receptance = step.receptance.weights;
  Product product(tile_block<Weight>(is_key ? key : receptance, block, C), C, warp() % kSlices,
                  block * kTileRows < width);

  const Group rows = Group::mine<batch>(step.B);
  const float *const x = step.x + rows.first * C, *const mix = is_key ? step.mix_k : step.mix_r,
                     *const columns = is_key ? step.key.columns : step.receptance.columns,
                     *const scales = is_key ? step.key.rows : step.receptance.rows;
  if (thread() < rows.count) state[thread()] = slot_of(step.slots, rows.first + thread());
  row_statistics(x, rows.count, C, step.norm.eps, statistics);
  multiply_all(product, C, staged, [&](int64_t first) {
    struct Inputs {
      float x, weight, bias, last, mix, column;
    };
    const auto place = [&](int i) { return Staged<Product::kChunk>(i, first, rows.count, C); };
    load_ahead<batch * Product::kChunk, kInnerThreads, kAheadOf<Weight, batch, kHasColumns<Weight> ? 6 : 5>>(
        [&](int i) {
          const auto [b, c, exists] = place(i);
          return Inputs{x[b * C + c],
                        step.norm.weight[c],
                        step.norm.bias[c],
                        step.shift[state[b] * step.shift_stride + c],
                        mix[c],
                        column_scale<Weight>(columns, c)};
        },
        [&](int i, const Inputs& in) {
          const auto [b, c, exists] = place(i);
          const float now = normalised(in.x, statistics.mean[b], statistics.scale[b], in.weight, in.bias);
          if (mine == 0 && exists) scratch.now[(rows.first + b) * C + c] = now;
          staged[i] = exists ? scaled<Weight>(token_shift(now, in.last, in.mix), in.column) : 0.0f;
        });
  });
  product.store(parts[warp() / kSlices] + warp() % kSlices * Product::kSums);
  __syncthreads();

  // A warp finishes 32 outputs of one row.
  const int64_t n = word * kWordBits + lane();
  for (int b = warp(); b < batch; b += kInnerThreads / kWarp) {
    float sum = sum_of_slices<Product>(parts[lane() / kTileRows], b * kTileRows + lane() % kTileRows);
    if (n < width) sum = times_row<Weight>(sum, scales, n);
    if (is_key) {
      const float positive = sum < 0 ? 0 : sum;  // keeps NaN
      const bool counts = b < rows.count && n < F && !is_padding(state, b, rows.count);
      float squared = counts ? positive * positive : 0;
      if (n < F) {
        if (has_column_scales(step.value.format)) squared *= step.value.columns[n];
        scratch.squared[(blockIdx.y * F + n) * batch + b] = squared;
      }
      const uint32_t vote = __ballot_sync(kAllLanes, squared != 0);
      if (lane() == 0) scratch.active[(blockIdx.y * words + word) * batch + b] = vote;
    } else if (b < rows.count && n < C) {
      scratch.gate[(rows.first + b) * C + n] = sigmoid(sum);
    }
  }
}

// Launches the blocks of the first kernel that belong to the key, the receptance or both.
cudaError_t launch_inner(Format format, const ChannelMixing4Step& step, const Scratch& scratch, int64_t first_block,
                         int64_t blocks, cudaStream_t stream) {
  return for_format(format, [&]<class Weight>(Weight) {
    return for_batch(step.B, [&](auto batch) {
      return launch(&inner_kernel<Weight, batch()>, grid_of(blocks, pieces(step.B, batch())), kInnerThreads, 0, stream,
                    step, scratch, first_block);
    });
  });
}

}  // namespace

int64_t scratch_bytes(const ChannelMixing4Step& step) {
  const int64_t rows = padded_rows(step.B);
  const int64_t numbers = rows * step.F + step.B * (step.C + step.receptance.N) + rows * pieces(step.F, kWordBits);
  return numbers * static_cast<int64_t>(sizeof(float));
}

cudaError_t channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, cudaStream_t stream) {
  const int64_t rows = padded_rows(step.B), of_key = pieces(step.F, kWordBits),
                of_receptance = pieces(step.receptance.N, kWordBits);
  float* const squared = static_cast<float*>(scratch);
  auto* const active = reinterpret_cast<uint32_t*>(squared + rows * step.F);
  float* const now = reinterpret_cast<float*>(active + rows * of_key);
  const Scratch parts{group_rows(step.B), squared, step.receptance.N > 0 ? now + step.B * step.C : nullptr, now,
                      active};
  const Format key = step.key.format, receptance = step.receptance.format;
  const bool together = key == receptance;
  cudaError_t status = launch_inner(key, step, parts, 0, together ? of_key + of_receptance : of_key, stream);
  if (status == cudaSuccess && !together) status = launch_inner(receptance, step, parts, of_key, of_receptance, stream);
  return status == cudaSuccess ? launch_sparse(step, parts, stream) : status;
}

}  // namespace rwkv::cuda

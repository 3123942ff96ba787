// There are two kernels. The first computes relu(k)^2, with a bit for each input that is not zero, and sigmoid(r). The
// second reads those rows of the value matrix whose bits are set. Every block of the first kernel reads the old shift
// row, so the new one is written to scratch, and replaces it in the second kernel.
//
// A kernel is compiled for one format of weights. If key and receptance differ in their formats, the first kernel is
// launched once for each.
#include "kernels/cuda/channel_mixing4_step.h"

#include <algorithm>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/row_segment.cuh"
#include "kernels/cuda/staging.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/math.h"

namespace rwkv::cuda {
namespace {

constexpr int kWordBits = 32;

struct Scratch {
  int64_t batch;     // the number of rows in a group of the first kernel
  float* squared;    // (groups, F, batch): the rows of an input are adjacent
  float* gate;       // (B, C), sigmoid(r)
  float* now;        // (B, C), LayerNorm(x)
  uint32_t* active;  // (groups, words of F bits, batch)
};

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
      float squared = b < rows.count && n < F ? positive * positive : 0;
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

// The number of adjacent lanes in a row of the value matrix: 32 bytes, the size of a memory transaction.
constexpr int kRowLanes = 2;
// With 8-bit weights half as many blocks compute all outputs, and a quarter with int4, so each block has more threads;
// with int4 as many as leave each the registers for 64 sums.
template <class Weight>
constexpr int kSparseThreads = std::is_same_v<Weight, Int4> ? 384
                               : kVectorOutputs<Weight> > 8 ? 512
                                                            : 256;
// The number of rows that share each load of the value matrix, because 64 sums fit into registers.
template <class Weight>
constexpr int kMostSparseRows = std::min(8, 64 / kVectorOutputs<Weight>);

// Computes y = x + gate * (sum over the active inputs f of squared[f] value[f]) for kRowLanes * outputs outputs, and
// their part of the new shift row. A worker computes `outputs` outputs per lane. Words of 32 inputs are assigned to
// workers in turn, by the index of the inputs and not by which of them are active; otherwise the result of a row would
// depend on the other rows of the batch.
template <class Weight, int batch, int outputs>
__global__ void __launch_bounds__(kSparseThreads<Weight>, 1) sparse_kernel(ChannelMixing4Step step, Scratch scratch) {
  constexpr int kSums = batch * outputs, kThreads = kSparseThreads<Weight>, kWorkers = kThreads / kRowLanes,
                kWarps = kThreads / kWarp, kAhead = batch > 4 || kSums > 32 ? 2 : 4;
  using Segment = RowSegment<Weight, outputs>;
  using Squared = Pack<float, batch>;
  using Votes = Pack<uint32_t, batch>;
  __shared__ float parts[kWarps][kRowLanes * kSums];

  const int64_t C = step.C, F = step.F, words = (F + kWordBits - 1) / kWordBits;
  const int side = lane() % kRowLanes, worker = thread() / kRowLanes;
  const Group rows = Group::mine<batch>(step.B);
  const int64_t group = rows.first / scratch.batch, within = rows.first % scratch.batch;
  const uint32_t* const active = scratch.active + group * words * scratch.batch + within;
  const float* const inputs = scratch.squared + group * F * scratch.batch + within;
  const Segment segment(step.value, static_cast<int64_t>(blockIdx.x) * kRowLanes + side);

  float sums[kSums] = {};
  for (int64_t word = worker; word < words && segment.exists(); word += kWorkers) {
    const Votes votes = *reinterpret_cast<const Votes*>(active + word * scratch.batch);
    uint32_t left = 0;
#pragma unroll
    for (int b = 0; b < batch; ++b) left |= votes.at[b];
    while (left) {
      typename Segment::Words loaded[kAhead];
      Squared squared[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t f = word * kWordBits + __ffs(static_cast<int>(left)) - 1;
        loaded[i] = {}, squared[i] = {};
        if (left) {
          loaded[i] = segment.load(f);
          squared[i] = *reinterpret_cast<const Squared*>(inputs + f * scratch.batch);
        }
        left &= left - 1;  // clears the lowest bit
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float w[outputs];
        Segment::widen(loaded[i], w);
#pragma unroll
        for (int j = 0; j < outputs; ++j)
#pragma unroll
          for (int b = 0; b < batch; ++b) sums[b * outputs + j] = fmaf(w[j], squared[i].at[b], sums[b * outputs + j]);
      }
    }
  }
  const int first = spread_sums<kSums, kWarp / 2, kRowLanes>(sums);
  if (first >= 0)
#pragma unroll
    for (int i = 0; i < kSpread<kSums, kWarp / 2, kRowLanes>; ++i) parts[warp()][side * kSums + first + i] = sums[i];
  __syncthreads();

  for (int i = thread(); i < kRowLanes * kSums; i += kThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][i];
    const int b = i % kSums / outputs;
    const int64_t c = Segment::output(static_cast<int64_t>(blockIdx.x) * kRowLanes + i / kSums, i % outputs);
    if (b >= rows.count || c >= C) continue;
    const int64_t at = (rows.first + b) * C + c;
    step.y[at] = fmaf(scratch.gate[at], times_row<Weight>(sum, step.value.rows, c), step.x[at]);
    step.shift[slot_of(step.slots, rows.first + b) * step.shift_stride + c] = scratch.now[at];
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

template <class Weight, int batch, int outputs>
cudaError_t launch_sparse(const ChannelMixing4Step& step, const Scratch& scratch, cudaStream_t stream) {
  const int64_t padded = std::is_same_v<Weight, Int4> ? pieces(step.C, kInt4Outputs) * kInt4Outputs : step.C;
  return launch(&sparse_kernel<Weight, batch, outputs>,
                grid_of(pieces(padded, kRowLanes * outputs), pieces(step.B, batch)), kSparseThreads<Weight>, 0, stream,
                step, scratch);
}

// Rows of int4 weights are padded; with other weights, the 16 bytes of a lane may not be aligned in every row.
cudaError_t launch_sparse(const ChannelMixing4Step& step, const Scratch& scratch, cudaStream_t stream) {
  return for_format(step.value.format, [&]<class Weight>(Weight) {
    return for_batch<kMostSparseRows<Weight>>(step.B, [&](auto batch) {
      constexpr int outputs = kVectorOutputs<Weight>;
      if constexpr (!std::is_same_v<Weight, Int4>) {
        const bool aligned = step.C % outputs == 0 && reinterpret_cast<uintptr_t>(step.value.weights) % 16 == 0;
        if (!aligned) return launch_sparse<Weight, batch(), 1>(step, scratch, stream);
      }
      return launch_sparse<Weight, batch(), outputs>(step, scratch, stream);
    });
  });
}

}  // namespace

int64_t scratch_bytes(const ChannelMixing4Step& step) {
  const int64_t rows = padded_rows(step.B);
  const int64_t numbers = rows * step.F + 2 * step.B * step.C + rows * pieces(step.F, kWordBits);
  return numbers * static_cast<int64_t>(sizeof(float));
}

cudaError_t channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, cudaStream_t stream) {
  const int64_t rows = padded_rows(step.B), of_key = pieces(step.F, kWordBits),
                of_receptance = pieces(step.C, kWordBits);
  float* const squared = static_cast<float*>(scratch);
  auto* const active = reinterpret_cast<uint32_t*>(squared + rows * step.F);
  float* const gate = reinterpret_cast<float*>(active + rows * of_key);
  const Scratch parts{group_rows(step.B), squared, gate, gate + step.B * step.C, active};
  const Format key = step.key.format, receptance = step.receptance.format;
  const bool together = key == receptance;
  cudaError_t status = launch_inner(key, step, parts, 0, together ? of_key + of_receptance : of_key, stream);
  if (status == cudaSuccess && !together) status = launch_inner(receptance, step, parts, of_key, of_receptance, stream);
  return status == cudaSuccess ? launch_sparse(step, parts, stream) : status;
}

}  // namespace rwkv::cuda

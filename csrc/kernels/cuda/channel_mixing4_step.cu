// There are two kernels. The first computes relu(k)^2, with a bit for each input that is not zero, and sigmoid(r). The
// second reads those rows of the value matrix whose bits are set. Every block of the first kernel reads the old shift
// row, so the new one is written to scratch, and replaces it in the second kernel.
#include "kernels/cuda/channel_mixing4_step.h"

#include <algorithm>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/tile_product.cuh"
#include "kernels/math.h"

namespace rwkv::cuda {
namespace {

constexpr int kWordBits = 32;
// In the second kernel, a lane computes the outputs of 16 bytes of weights, and this many rows share each load of the
// value matrix, because 64 sums fit into registers.
template <class Weight>
constexpr int kColumns = 16 / sizeof(Weight);
template <class Weight, int batch>
constexpr int kSparseRows = std::min(batch, kColumns<Weight> > 8 ? 4 : 8);

struct Scratch {
  float* squared;    // (groups of kSparseRows, F, kSparseRows): the rows of an input are adjacent
  float* gate;       // (B, C), sigmoid(r)
  float* now;        // (B, C), LayerNorm(x)
  uint32_t* active;  // (groups of kSparseRows, words of F bits)
};

// The number of rows in the buffers, padded to full groups.
int64_t padded_rows(int64_t B) {
  int64_t rows = 0;
  for_batch(B, [&](auto batch) {
    rows = pieces(B, batch()) * batch();
    return cudaSuccess;
  });
  return rows;
}

constexpr int kSlices = 4;
constexpr int kBlocks = kWordBits / kTileRows;  // of 16 outputs a CUDA block makes
constexpr int kInnerThreads = kBlocks * kSlices * kWarp;

// Computes 32 outputs of the key or, in the blocks after those, of the receptance.
template <class Weight, int batch>
__global__ void __launch_bounds__(kInnerThreads, kResident<batch, kInnerThreads>)
    inner_kernel(ChannelMixing4Step step, Scratch scratch) {
  using Product = TileProduct<Weight, batch, kSlices>;
  constexpr int kSparse = kSparseRows<Weight, batch>;
  alignas(16) __shared__ float staged[batch * Product::kChunk];
  __shared__ float parts[kBlocks][kSlices * Product::kSums];
  __shared__ RowStatistics<batch, kInnerThreads> statistics;
  __shared__ int64_t state[batch];
  __shared__ uint32_t votes[batch];

  const int64_t C = step.C, F = step.F, words = (F + kWordBits - 1) / kWordBits;
  const bool is_key = blockIdx.x < words;
  const int64_t word = is_key ? blockIdx.x : blockIdx.x - words, width = is_key ? F : C;
  const int64_t block = word * kBlocks + warp() / kSlices;
  const Weight *const key = step.key.as<Weight>(), *const receptance = step.receptance.as<Weight>();
  Product product(tile_block(is_key ? key : receptance, block, C), C, warp() % kSlices, block * kTileRows < width);

  const Group rows = Group::mine<batch>(step.B);
  const float *const x = step.x + rows.first * C, *const mix = is_key ? step.mix_k : step.mix_r,
                     *const columns = is_key ? step.key.columns : step.receptance.columns,
                     *const scales = is_key ? step.key.rows : step.receptance.rows;
  if (thread() < rows.count) state[thread()] = slot_of(step.slots, rows.first + thread());
  row_statistics(x, rows.count, C, step.norm.eps, statistics);
  multiply_all(product, C, staged, [&](int64_t first) {
#pragma unroll 2
    for (int i = thread(); i < batch * Product::kChunk; i += kInnerThreads) {
      const int b = i / Product::kChunk;
      const int64_t c = first + i % Product::kChunk;
      float mixed = 0;
      if (b < rows.count && c < C) {
        const float now = normalised(x[b * C + c], statistics.mean[b], statistics.scale[b], step.norm, c);
        const float last = step.shift[state[b] * step.shift_stride + c];
        mixed = scaled<Weight>(token_shift(now, last, mix[c]), columns, c);
        if (blockIdx.x == 0) scratch.now[(rows.first + b) * C + c] = now;
      }
      staged[i] = mixed;
    }
  });
  product.store(parts[warp() / kSlices] + warp() % kSlices * Product::kSums);
  __syncthreads();

  // A warp finishes 32 outputs of one row.
  const int64_t n = word * kWordBits + lane();
  for (int b = warp(); b < batch; b += kInnerThreads / kWarp) {
    float sum = sum_of_slices<Product>(parts[lane() / kTileRows], b * kTileRows + lane() % kTileRows);
    if (n < width) sum = scaled<Weight>(sum, scales, n);
    if (is_key) {
      const float positive = sum < 0 ? 0 : sum;  // keeps NaN
      const float squared = b < rows.count && n < F ? scaled<Weight>(positive * positive, step.value.columns, n) : 0;
      const int64_t group = (rows.first + b) / kSparse;
      if (n < F) scratch.squared[(group * F + n) * kSparse + b % kSparse] = squared;
      const uint32_t vote = __ballot_sync(kAllLanes, squared != 0);
      if (lane() == 0) votes[b] = vote;
    } else if (b < rows.count && n < C) {
      scratch.gate[(rows.first + b) * C + n] = sigmoid(sum);
    }
  }
  if (!is_key) return;
  __syncthreads();
  if (thread() < batch / kSparse) {
    uint32_t any = 0;
    for (int b = 0; b < kSparse; ++b) any |= votes[thread() * kSparse + b];
    scratch.active[(rows.first / kSparse + thread()) * words + word] = any;
  }
}

// The number of adjacent lanes in a row of the value matrix: 32 bytes, the size of a memory transaction.
constexpr int kRowLanes = 2;
// With 8-bit weights half as many blocks compute all outputs, so each block has twice as many threads.
template <class Weight>
constexpr int kSparseThreads = sizeof(Weight) == 1 ? 512 : 256;

// Computes y = x + gate * (sum over the active inputs f of squared[f] value[f]) for kRowLanes * columns outputs, and
// their part of the new shift row. A worker computes `columns` outputs per lane. Words of 32 inputs are assigned to
// workers in turn, by the index of the inputs and not by which of them are active; otherwise the result of a row would
// depend on the other rows of the batch.
template <class Weight, int batch, int columns>
__global__ void __launch_bounds__(kSparseThreads<Weight>, 1) sparse_kernel(ChannelMixing4Step step, Scratch scratch) {
  constexpr int kSums = batch * columns, kThreads = kSparseThreads<Weight>, kWorkers = kThreads / kRowLanes,
                kWarps = kThreads / kWarp, kAhead = batch > 4 || kSums > 32 ? 2 : 4;
  // With uint4 the compiler does not split the 16 bytes into weights and pack them again.
  using Words = std::conditional_t<columns == 1, Weight, uint4>;
  __shared__ float parts[kWarps][kRowLanes * kSums];

  const int64_t C = step.C, F = step.F, words = (F + kWordBits - 1) / kWordBits;
  const int side = lane() % kRowLanes, worker = thread() / kRowLanes;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kRowLanes + side) * columns;
  const uint32_t* const active = scratch.active + blockIdx.y * words;
  const auto* const inputs = reinterpret_cast<const Pack<float, batch>*>(scratch.squared) + blockIdx.y * F;

  float sums[kSums] = {};
  for (int64_t word = worker; word < words && column < C; word += kWorkers) {
    uint32_t left = active[word];
    while (left) {
      Words words[kAhead];
      Pack<float, batch> squared[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t f = word * kWordBits + __ffs(static_cast<int>(left)) - 1;
        words[i] = {}, squared[i] = {};
        if (left) {
          words[i] = *reinterpret_cast<const Words*>(step.value.as<Weight>() + f * C + column);
          squared[i] = inputs[f];
        }
        left &= left - 1;  // clears the lowest bit
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        Pack<Weight, columns> weights;
        memcpy(&weights, &words[i], sizeof weights);
        float w[columns];
        widen(weights, w);
#pragma unroll
        for (int j = 0; j < columns; ++j)
#pragma unroll
          for (int b = 0; b < batch; ++b) sums[b * columns + j] = fmaf(w[j], squared[i].at[b], sums[b * columns + j]);
      }
    }
  }
  const int first = spread_sums<kSums, kWarp / 2, kRowLanes>(sums);
  if (first >= 0)
#pragma unroll
    for (int i = 0; i < kSpread<kSums, kWarp / 2, kRowLanes>; ++i) parts[warp()][side * kSums + first + i] = sums[i];
  __syncthreads();

  const Group rows = Group::mine<batch>(step.B);
  for (int i = thread(); i < kRowLanes * kSums; i += kThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][i];
    const int b = i % kSums / columns;
    const int64_t c = (static_cast<int64_t>(blockIdx.x) * kRowLanes + i / kSums) * columns + i % columns;
    if (b >= rows.count || c >= C) continue;
    const int64_t at = (rows.first + b) * C + c;
    step.y[at] = fmaf(scratch.gate[at], scaled<Weight>(sum, step.value.rows, c), step.x[at]);
    step.shift[slot_of(step.slots, rows.first + b) * step.shift_stride + c] = scratch.now[at];
  }
}

template <class Weight, int batch, int columns>
cudaError_t launch_sparse(const ChannelMixing4Step& step, const Scratch& scratch, cudaStream_t stream) {
  return launch(&sparse_kernel<Weight, batch, columns>,
                grid_of(pieces(step.C, kRowLanes * columns), pieces(step.B, batch)), kSparseThreads<Weight>, 0, stream,
                step, scratch);
}

}  // namespace

int64_t scratch_bytes(const ChannelMixing4Step& step) {
  const int64_t rows = padded_rows(step.B);
  const int64_t numbers = rows * step.F + 2 * step.B * step.C + rows * pieces(step.F, kWordBits);
  return numbers * static_cast<int64_t>(sizeof(float));
}

cudaError_t channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, cudaStream_t stream) {
  float* const squared = static_cast<float*>(scratch);
  return for_format(step.key.format, [&]<class Weight>(Weight) {
    return for_batch(step.B, [&](auto batch) {
      float* const gate = squared + padded_rows(step.B) * step.F;
      float* const now = gate + step.B * step.C;
      const Scratch parts{squared, gate, now, reinterpret_cast<uint32_t*>(now + step.B * step.C)};
      const int64_t words = pieces(step.F, kWordBits) + pieces(step.C, kWordBits);
      const cudaError_t status = launch(&inner_kernel<Weight, batch()>, grid_of(words, pieces(step.B, batch())),
                                        kInnerThreads, 0, stream, step, parts);
      if (status != cudaSuccess) return status;
      constexpr int rows = kSparseRows<Weight, batch()>, columns = kColumns<Weight>;
      const bool aligned = step.C % columns == 0 && reinterpret_cast<uintptr_t>(step.value.weights) % 16 == 0;
      return aligned ? launch_sparse<Weight, rows, columns>(step, parts, stream)
                     : launch_sparse<Weight, rows, 1>(step, parts, stream);
    });
  });
}

}  // namespace rwkv::cuda

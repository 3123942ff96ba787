// The second kernel of channel mixing, and what the first one leaves for it. Torch-free; device code.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_segment.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/mixing4_steps.h"

namespace rwkv::cuda {
namespace {

constexpr int kWordBits = 32;

struct Scratch {
  int64_t batch;     // the number of rows in a group of the first kernel
  float* squared;    // (groups, F, batch): the rows of an input are adjacent
  float* gate;       // (B, C), sigmoid(r); null where there is no receptance
  float* now;        // (B, C), LayerNorm(x)
  uint32_t* active;  // (groups, words of F bits, batch)
};

// The number of adjacent lanes in a row of the value matrix: 32 bytes, the size of a memory transaction.
constexpr int kSegmentLanes = 2;
// With 8-bit weights half as many blocks compute all outputs, and a quarter with int4, so each block has more threads;
// with int4 as many as leave each the registers for 64 sums.
template <class Weight>
constexpr int kSparseThreads = std::is_same_v<Weight, Int4> ? 384
                               : kVectorOutputs<Weight> > 8 ? 512
                                                            : 256;
// The number of rows that share each load of the value matrix, because 64 sums fit into registers.
template <class Weight>
constexpr int kMostSparseRows = std::min(8, 64 / kVectorOutputs<Weight>);

// Computes y = x + gate * (sum over the active inputs f of squared[f] value[f]) for kSegmentLanes * outputs outputs,
// and their part of the new shift row. A worker computes `outputs` outputs per lane. Words of 32 inputs are assigned to
// workers in turn, by the index of the inputs and not by which of them are active; otherwise the result of a row would
// depend on the other rows of the batch.
template <class Weight, int batch, int outputs>
__global__ void __launch_bounds__(kSparseThreads<Weight>, 1) sparse_kernel(ChannelMixing4Step step, Scratch scratch) {
  constexpr int kSums = batch * outputs, kThreads = kSparseThreads<Weight>, kWorkers = kThreads / kSegmentLanes,
                kWarps = kThreads / kWarp, kAhead = batch > 4 || kSums > 32 ? 2 : 4;
  using Segment = RowSegment<Weight, outputs>;
  using Squared = Pack<float, batch>;
  using Votes = Pack<uint32_t, batch>;
  __shared__ float parts[kWarps][kSegmentLanes * kSums];

  const int64_t C = step.C, F = step.F, words = (F + kWordBits - 1) / kWordBits;
  const int side = lane() % kSegmentLanes, worker = thread() / kSegmentLanes;
  const Group rows = Group::mine<batch>(step.B);
  const int64_t group = rows.first / scratch.batch, within = rows.first % scratch.batch;
  const uint32_t* const active = scratch.active + group * words * scratch.batch + within;
  const float* const inputs = scratch.squared + group * F * scratch.batch + within;
  const Segment segment(step.value, static_cast<int64_t>(blockIdx.x) * kSegmentLanes + side);

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
  const int first = spread_sums<kSums, kWarp / 2, kSegmentLanes>(sums);
  if (first >= 0)
#pragma unroll
    for (int i = 0; i < kSpread<kSums, kWarp / 2, kSegmentLanes>; ++i)
      parts[warp()][side * kSums + first + i] = sums[i];
  __syncthreads();

  for (int i = thread(); i < kSegmentLanes * kSums; i += kThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += parts[w][i];
    const int b = i % kSums / outputs;
    const int64_t c = Segment::output(static_cast<int64_t>(blockIdx.x) * kSegmentLanes + i / kSums, i % outputs);
    if (b >= rows.count || c >= C) continue;
    const int64_t at = (rows.first + b) * C + c;
    const float gate = step.receptance.N > 0 ? scratch.gate[at] : 1.0f;
    step.y[at] = fmaf(gate, times_row<Weight>(sum, step.value.rows, c), step.x[at]);
    step.shift[slot_of(step.slots, rows.first + b) * step.shift_stride + c] = scratch.now[at];
  }
}

template <class Weight, int batch, int outputs>
cudaError_t launch_sparse(const ChannelMixing4Step& step, const Scratch& scratch, cudaStream_t stream) {
  const int64_t padded = std::is_same_v<Weight, Int4> ? pieces(step.C, kInt4Outputs) * kInt4Outputs : step.C;
  return launch(&sparse_kernel<Weight, batch, outputs>,
                grid_of(pieces(padded, kSegmentLanes * outputs), pieces(step.B, batch)), kSparseThreads<Weight>, 0,
                stream, step, scratch);
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
}  // namespace rwkv::cuda

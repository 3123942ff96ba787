// W x for a batch of rows x and 16 rows of a matrix W in tiles (kernels/tiles.h), by the warps of a block. Torch-free;
// device code.
//
// Consecutive reads along the inputs (cuda/tile_reading.cuh) are assigned to `slices` warps in turn. The sum of a row
// is first computed in each lane, then over the lanes, then over the slices, always in this order. The caller applies
// the scales of rows and columns: x has been multiplied by those of the columns.
#pragma once

#include "kernels/cuda/staging.cuh"
#include "kernels/cuda/tile_reading.cuh"
#include "kernels/matrix.h"

namespace rwkv::cuda {

// The address of block i of a matrix with K inputs.
template <class Weight>
__device__ const uint4* tile_block(const void* matrix, int64_t i, int64_t K) {
  const int64_t tiles = (K + kTileInputs<Weight> - 1) / kTileInputs<Weight>;
  return static_cast<const uint4*>(matrix) + i * tiles * kTileVectors<Weight>;
}

// One warp's part of the product.
template <class Weight, int batch, int slices>
class TileProduct {
  using Read = Reading<Weight>;
  static constexpr int P = Read::kPart;
  static constexpr int kLaneInputs = Read::kParts * P;
  static constexpr int kInputs = kWarpGroups * kLaneInputs;  // inputs per read
  static constexpr int kAhead = Read::template kAhead<batch>;

 public:
  static constexpr int kRound = slices * kAhead * kInputs;  // the number of inputs that are multiplied at a time
  static constexpr int kSlices = slices;
  static constexpr int kSums = batch * kTileRows;
  // The number of inputs of x that are in shared memory at a time: [batch][kChunk].
  static constexpr int kChunk = 2048 / batch > kRound ? 2048 / batch : kRound;

  // Starts the first reads, so that activations can be prepared meanwhile. If `exists` is false, `block` is not read.
  __device__ TileProduct(const uint4* block, int64_t K, int slice, bool exists = true)
      : next_(block + slice * Read::kVectors + Read::first()),
        left_(0),
        offset_(slice * kInputs + lane() / kRowLanes * kLaneInputs) {
    constexpr int kTileReadings = kTileInputs<Weight> / kInputs;
    const int64_t readings = (K + kTileInputs<Weight> - 1) / kTileInputs<Weight> * kTileReadings;
    if (exists && readings > slice) left_ = static_cast<int>((readings - slice + slices - 1) / slices);
    read();
  }

  // Adds the products with the next kChunk inputs of x.
  __device__ void add(const float* x) {
    for (int at = 0; at < kChunk && left_ > -kAhead; at += kRound) {
      Read reads[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) reads[i] = reads_[i];
      read();
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
#pragma unroll
        for (int part = 0; part < Read::kParts; ++part)
          multiply(reads[i], part, x + at + offset_ + i * slices * kInputs + part * P);
    }
  }

  // Writes this warp's sums, [batch][16 rows], to shared memory.
  __device__ void store(float* to) {
    constexpr int n = batch * kLaneRows;
    const int first = spread_sums<n, kWarp / 2, kRowLanes>(sums_), row = lane() % kRowLanes * kLaneRows;
    if (first < 0) return;
#pragma unroll
    for (int i = 0; i < kSpread<n, kWarp / 2, kRowLanes>; ++i)
      to[(first + i) / kLaneRows * kTileRows + row + (first + i) % kLaneRows] = sums_[i];
  }

 private:
  // Starts the next reads, with zeros after the last one. All lanes take the same branch.
  __device__ void read() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      reads_[i] = {};
      if (i < left_) reads_[i].load(next_ + i * slices * Read::kVectors);
    }
    next_ += kAhead * slices * Read::kVectors;
    left_ -= kAhead;
  }

  __device__ void multiply(const Read& read, int part, const float* x) {
    float w[kLaneRows * P];
    read.widen(part, w);
#pragma unroll
    for (int b = 0; b < batch; ++b) {
      const auto inputs = *reinterpret_cast<const Pack<float, P>*>(x + b * kChunk);
#pragma unroll
      for (int r = 0; r < kLaneRows; ++r)
#pragma unroll
        for (int p = 0; p < P; ++p)
          sums_[b * kLaneRows + r] = fmaf(w[r * P + p], inputs.at[p], sums_[b * kLaneRows + r]);
    }
  }

  const uint4* next_;
  int left_;    // reads of this slice that have not been started
  int offset_;  // the position of this lane's first input
  Read reads_[kAhead];
  float sums_[batch * kLaneRows] = {};
};

// Multiplies all K inputs. stage(first) writes kChunk of them to shared memory, with zeros after K; `staged` is the
// part for this warp. All threads must call this; it synchronises them after each call of `stage`.
template <class Product, class Stage>
__device__ void multiply_all(Product& product, int64_t K, const float* staged, const Stage& stage) {
  for (int64_t first = 0; first < K; first += Product::kChunk) {
    if (first) __syncthreads();
    stage(first);
    __syncthreads();
    product.add(staged);
  }
}

// Sum i of batch * 16 sums, from the parts of the slices, [slices][batch][16] in shared memory.
template <class Product>
__device__ float sum_of_slices(const float* parts, int i) {
  float sum = 0;
#pragma unroll
  for (int slice = 0; slice < Product::kSlices; ++slice) sum += parts[slice * Product::kSums + i];
  return sum;
}

// Stages rows x (B, K), times the scales of the columns, for multiply_all.
template <class Weight, class Product, int batch, int threads>
__device__ void stage_rows(const float* x, int rows, int64_t K, const float* columns, int64_t first, float* staged) {
  struct Input {
    float x, column;
  };
  const auto place = [&](int i) { return Staged<Product::kChunk>(i, first, rows, K); };
  load_ahead<batch * Product::kChunk, threads, kAheadOf<Weight, batch, kHasColumns<Weight> ? 4 : 2>>(
      [&](int i) {
        const auto [b, k, exists] = place(i);
        return Input{x[b * K + k], column_scale<Weight>(columns, k)};
      },
      [&](int i, const Input& in) { staged[i] = place(i).exists ? scaled<Weight>(in.x, in.column) : 0.0f; });
}

}  // namespace rwkv::cuda

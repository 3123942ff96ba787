// W x for a batch of rows x and 16 rows of a matrix W in tiles (kernels/tiles.h), by the warps of a block. Torch-free;
// device code.
//
// A warp reads 512 bytes at once: of 8 groups of inputs the 16 rows' 4 bytes, 16 bytes a lane, which are 4 rows of one
// group. `slices` warps take turns along the inputs. A row is added up lane by lane, then over the lanes, then over the
// slices, always in this order. Scales of int8 weights are the caller's: x comes with those of the columns.
#pragma once

#include "kernels/cuda/widen.cuh"
#include "kernels/matrix.h"

namespace rwkv::cuda {

constexpr int kLaneRows = 4;                              // of a lane's 16 bytes
constexpr int kRowLanes = kTileRows / kLaneRows;          // lanes that share a group
constexpr int kWarpGroups = kWarp / kRowLanes;            // groups of one reading
constexpr int kTileReadings = kTileGroups / kWarpGroups;  // of 512 bytes

// Where block i of a matrix with K inputs begins.
template <class Weight>
__host__ __device__ const Weight* tile_block(const Weight* matrix, int64_t i, int64_t K) {
  const int64_t tiles = (K + kTileInputs<Weight> - 1) / kTileInputs<Weight>;
  return matrix + i * tiles * (kTileInputs<Weight> * kTileRows);
}

// What one warp adds to the product.
template <class Weight, int batch, int slices>
class TileProduct {
  static constexpr int P = kGroupInputs<Weight>;
  static constexpr int kInputs = kWarpGroups * P;  // of one reading
  // Readings under way while as many are multiplied. Of bytes with 16 rows one is 256 multiplications, which is long
  // enough, and the inputs of two would not fit into shared memory thrice.
  static constexpr int kAhead = batch <= 4 ? 4 : batch * P <= 32 ? 2 : 1;
  static constexpr int kRound = slices * kAhead * kInputs;

 public:
  static constexpr int kSlices = slices;
  static constexpr int kSums = batch * kTileRows;
  // Inputs of x that are in shared memory at a time: [batch][kChunk].
  static constexpr int kChunk = 2048 / batch > kRound ? 2048 / batch : kRound;

  // Begins to read, so that activations can be prepared meanwhile. `block` may be anything if there is none.
  __device__ TileProduct(const Weight* block, int64_t K, int slice, bool exists = true)
      : next_(reinterpret_cast<const uint4*>(block) + slice * kWarp + lane()),
        left_(0),
        offset_(slice * kInputs + lane() / kRowLanes * P) {
    const int64_t readings = (K + kTileInputs<Weight> - 1) / kTileInputs<Weight> * kTileReadings;
    if (exists && readings > slice) left_ = static_cast<int>((readings - slice + slices - 1) / slices);
    read();
  }

  // Adds the products with the next kChunk inputs of x.
  __device__ void add(const float* x) {
    for (int at = 0; at < kChunk && left_ > -kAhead; at += kRound) {
      uint4 words[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) words[i] = words_[i];
      read();
#pragma unroll
      for (int i = 0; i < kAhead; ++i) multiply(words[i], x + at + offset_ + i * slices * kInputs);
    }
  }

  // Leaves this warp's sums, [batch][16 rows], in shared memory.
  __device__ void store(float* to) {
    constexpr int n = batch * kLaneRows;
    const int first = spread_sums<n, kWarp / 2, kRowLanes>(sums_), row = lane() % kRowLanes * kLaneRows;
    if (first < 0) return;
#pragma unroll
    for (int i = 0; i < kSpread<n, kWarp / 2, kRowLanes>; ++i)
      to[(first + i) / kLaneRows * kTileRows + row + (first + i) % kLaneRows] = sums_[i];
  }

 private:
  // The next readings, zeros where there are none. Whether there are is the same in all lanes.
  __device__ void read() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) words_[i] = i < left_ ? next_[i * slices * kWarp] : uint4{0, 0, 0, 0};
    next_ += kAhead * slices * kWarp;
    left_ -= kAhead;
  }

  __device__ void multiply(const uint4& words, const float* x) {
    Pack<Weight, kLaneRows * P> weights;
    memcpy(&weights, &words, sizeof weights);
    float w[kLaneRows * P];
    widen(weights, w);
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
  int left_;    // readings of this slice that are not under way
  int offset_;  // of this lane's first input
  uint4 words_[kAhead];
  float sums_[batch * kLaneRows] = {};
};

// Multiplies all K inputs: stage(first) puts kChunk of them into shared memory, zeros behind K; `staged` is this warp's
// share of it. To be called by all threads; a barrier follows before anything is read.
template <class Product, class Stage>
__device__ void multiply_all(Product& product, int64_t K, const float* staged, const Stage& stage) {
  for (int64_t first = 0; first < K; first += Product::kChunk) {
    if (first) __syncthreads();
    stage(first);
    __syncthreads();
    product.add(staged);
  }
}

// The sum i of 16 batch from the slices' parts, [slices][batch][16] in shared memory.
template <class Product>
__device__ float sum_of_slices(const float* parts, int i) {
  float sum = 0;
#pragma unroll
  for (int slice = 0; slice < Product::kSlices; ++slice) sum += parts[slice * Product::kSums + i];
  return sum;
}

// Rows x (B, K) for multiply_all, times the scales of the columns.
template <class Weight, class Product, int batch, int threads>
__device__ void stage_rows(const float* x, int rows, int64_t K, const float* columns, int64_t first, float* staged) {
#pragma unroll 4
  for (int i = thread(); i < batch * Product::kChunk; i += threads) {
    const int b = i / Product::kChunk;
    const int64_t k = first + i % Product::kChunk;
    staged[i] = b < rows && k < K ? scaled<Weight>(x[b * K + k], columns, k) : 0.0f;
  }
}

}  // namespace rwkv::cuda

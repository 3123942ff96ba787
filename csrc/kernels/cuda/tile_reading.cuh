// What a warp reads of tiles at once: 8 groups of inputs of 16 rows. A lane reads 16 bytes, which are 4 rows of one
// group. Torch-free; device code.
//
// Reading<Weight> has the sizes, load(), which starts a read at the vector first() of it, and widen(), which converts
// the weights to float32. Weights are read once per token, so they are the first that the caches evict (__ldcs), and
// the vectors and states of a layer stay.
#pragma once

#include "kernels/cuda/int4.cuh"
#include "kernels/cuda/widen.cuh"

namespace rwkv::cuda {

constexpr int kLaneRows = 4;                      // rows in a lane's 16 bytes
constexpr int kRowLanes = kTileRows / kLaneRows;  // lanes that share a group
constexpr int kWarpGroups = kWarp / kRowLanes;    // groups per read

// Weights that are stored as numbers: a read is 512 bytes.
template <class Weight>
struct Reading {
  static constexpr int kPart = kGroupInputs<Weight>;  // inputs that are converted at a time
  static constexpr int kParts = 1;
  static constexpr int kVectors = kWarp;  // of 16 bytes, per read
  // The number of reads in flight while as many are multiplied. With 8-bit weights and 16 rows, a read takes 256
  // multiplications, so one in flight is enough; with two, the inputs of three blocks would not fit into shared memory.
  template <int batch>
  static constexpr int kAhead = batch <= 4            ? 4
                                : batch * kPart <= 32 ? 2
                                                      : 1;
  uint4 words = {};

  __device__ static int first() { return lane(); }
  __device__ void load(const uint4* from) { words = __ldcs(from); }

  // Writes [4 rows][kPart inputs].
  __device__ void widen(int, float* to) const {
    Pack<Weight, kLaneRows * kPart> weights;
    memcpy(&weights, &words, sizeof weights);
    cuda::widen(weights, to);
  }
};

// A read is a tile of 576 bytes, and a lane reads in addition the scales and minima of its rows. A lane has 8 inputs, 4
// in the low and 4 in the high halves of its bytes.
template <>
struct Reading<Int4> {
  static constexpr int kPart = 4, kParts = 2;
  static constexpr int kVectors = kInt4Words * kRowLanes;
  template <int batch>
  static constexpr int kAhead = batch <= 4 ? 2 : 1;
  uint4 parameters = {}, words = {};

  __device__ static int first() { return lane() % kRowLanes; }
  __device__ void load(const uint4* from) {
    parameters = __ldcs(from);
    words = __ldcs(from + (1 + lane() / kRowLanes) * kRowLanes);
  }

  __device__ void widen(int part, float* to) const {
    const uint32_t rows[kLaneRows] = {words.x, words.y, words.z, words.w},
                   groups[kLaneRows] = {parameters.x, parameters.y, parameters.z, parameters.w};
#pragma unroll
    for (int r = 0; r < kLaneRows; ++r) {
      const Int4Group group(groups[r]);
      float offset_q[kPart];
      int4_bytes(rows[r], part, offset_q);
#pragma unroll
      for (int p = 0; p < kPart; ++p) to[r * kPart + p] = group.weight(offset_q[p]);
    }
  }
};

// The number of vectors of 16 bytes in a tile.
template <class Weight>
constexpr int kTileVectors =
    kTileInputs<Weight> / (kWarpGroups * Reading<Weight>::kParts * Reading<Weight>::kPart) * Reading<Weight>::kVectors;

}  // namespace rwkv::cuda

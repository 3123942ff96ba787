// The tile layout of a matrix W (N outputs, K inputs), version 1: the same bytes on disk, in memory and on every
// device.
//
// 16 outputs make a block; along the inputs a block is cut into tiles of 64 bytes a row (16 float32, 32 16-bit inputs),
// and a tile lies in memory as 16 groups: of each of the 16 rows in turn the next 4 bytes. So 64 bytes in a row are 16
// rows' worth of one or two inputs, which is a vector register; a block is read from front to back; and no sum runs
// across lanes. N and K are filled up with zeros: W[n, k] with n = 16 i + r and k = (T j + P g + p) is at [i, j, g, r,
// p], where P = 4 / sizeof(weight) inputs share a group and T = 16 P a tile.
#pragma once

#include <cstdint>

namespace rwkv {

constexpr int kTileRows = 16;
constexpr int kTileGroups = 16;

// Weights in 16 bits are handed around by their bits.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Weight>
constexpr int kGroupInputs = 4 / sizeof(Weight);
template <class Weight>
constexpr int kTileInputs = kTileGroups * kGroupInputs<Weight>;

inline int64_t tile_blocks(int64_t N) { return (N + kTileRows - 1) / kTileRows; }

template <class Weight>
int64_t tiles_per_block(int64_t K) {
  return (K + kTileInputs<Weight> - 1) / kTileInputs<Weight>;
}

}  // namespace rwkv

// The tile layout of a matrix W (N outputs, K inputs), version 1: the same bytes on disk, in memory and on every
// device.
//
// The outputs are divided into blocks of 16 rows, and a block into tiles of 64 bytes per row along the inputs (16
// float32, 32 16-bit or 64 8-bit inputs). A tile consists of 16 groups; each has the next 4 bytes of all 16 rows.
// Therefore 64 consecutive bytes hold the same 1, 2 or 4 inputs of 16 rows, which is a vector register; a block is read
// sequentially; and sums do not cross lanes. N and K are padded with zeros. W[n, k] with n = 16 i + r and k = T j + P g
// + p is at [i, j, g, r, p], where a group has P = 4 / sizeof(weight) inputs and a tile T = 16 P.
#pragma once

#include <cstdint>

namespace rwkv {

constexpr int kTileRows = 16;
constexpr int kTileGroups = 16;

// 16-bit weights are passed as their bits.
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

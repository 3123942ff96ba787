// The tile layout of a matrix W (N outputs, K inputs), version 1: the same bytes on disk, in memory and on every
// device.
//
// The outputs are divided into blocks of 16 rows, and a block into tiles of 64 bytes per row along the inputs (16
// float32, 32 16-bit or 64 8-bit inputs). A tile consists of 16 groups; each has the next 4 bytes of all 16 rows.
// Therefore 64 consecutive bytes hold the same 1, 2 or 4 inputs of 16 rows, which is a vector register; a block is read
// sequentially; and sums do not cross lanes. N and K are padded with zeros. W[n, k] with n = 16 i + r and k = T j + P g
// + p is at [i, j, g, r, p], where a group has P = 4 / sizeof(weight) inputs and a tile T = 16 P.
//
// int4 weights have layouts of their own. The scale and the minimum of a group are float16. Bytes are little-endian.
//
// In tiles, a group is 64 inputs of one row. A tile is 64 inputs of 16 rows, 9 words of 64 bytes, each with 4 bytes of
// every row: word 0 has scale and minimum; word w of the others has the inputs 8 (w - 1) to 8 (w - 1) + 7, input i < 4
// in the low and input i + 4 in the high half of byte i. N and K are padded with zeros (also scale and minimum).
//
// As rows of W^T, a group is 64 outputs of one input. 128 outputs are a word of 64 bytes, 16 lanes of 32 bits: output
// 16 j + l is in bits 4 j to 4 j + 3 of lane l. A row has first, for each word, the scale and minimum of its first and
// of its second group, 8 bytes; then zeros up to a multiple of 64 bytes; then the words. Missing outputs are zeros.
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

// Stands for the type of int4 weights; no such number is stored alone.
struct Int4 {};

constexpr int kInt4Inputs = 64;    // of a tile
constexpr int kInt4Words = 9;      // of a tile
constexpr int kInt4Outputs = 128;  // of a word of a row of W^T

// The bytes of a matrix in int4 tiles, and of a row of W^T with N outputs.
inline int64_t int4_tile_bytes(int64_t N, int64_t K) {
  return (N + 15) / 16 * ((K + kInt4Inputs - 1) / kInt4Inputs) * kInt4Words * 64;
}
inline int64_t int4_row_bytes(int64_t N) {
  const int64_t words = (N + kInt4Outputs - 1) / kInt4Outputs;
  return ((8 * words + 63) / 64 + words) * 64;
}

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

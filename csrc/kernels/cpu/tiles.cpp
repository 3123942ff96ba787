#include "kernels/cpu/tiles.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/lanes.h"

namespace rwkv::cpu {
namespace {

// A tile is 16 x 16 words of 4 bytes; row r of group g is word 16 g + r. Converts it to 16 rows of 64 bytes, or back.
constexpr int kWords = kTileRows * kTileGroups;

RWKV_INLINE void transpose(const uint32_t* __restrict from, uint32_t* __restrict to) {
  for (int i = 0; i < kTileRows; ++i)
    for (int j = 0; j < kTileGroups; ++j) to[i * kTileGroups + j] = from[j * kTileRows + i];
}

// Calls move(tile, n, k, rows, inputs) for every tile with its address, its first row and input, and the number of its
// rows and inputs that are not padding.
template <class Weight, class Move>
void for_each_tile(int64_t N, int64_t K, const Run& run, const Move& move) {
  const int64_t tiles = tiles_per_block<Weight>(K), inputs = kTileInputs<Weight>;
  run(tile_blocks(N), 4 * kTileRows * K, [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t j = 0; j < tiles; ++j)
        move((block * tiles + j) * kTileRows * inputs, block * kTileRows, j * inputs,
             std::min<int64_t>(kTileRows, N - block * kTileRows), std::min(inputs, K - j * inputs));
  });
}

}  // namespace

template <class Weight>
void tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles, const Run& run) {
  for_each_tile<Weight>(N, K, run, [=](int64_t at, int64_t n, int64_t k, int64_t rows, int64_t inputs) {
    uint32_t words[kWords] = {}, tile[kWords];
    for (int64_t r = 0; r < rows; ++r)
      memcpy(words + r * kTileGroups, matrix + (n + r) * K + k, inputs * sizeof(Weight));
    transpose(words, tile);
    memcpy(tiles + at, tile, sizeof tile);
  });
}

template <class Weight>
void untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix, const Run& run) {
  for_each_tile<Weight>(N, K, run, [=](int64_t at, int64_t n, int64_t k, int64_t rows, int64_t inputs) {
    uint32_t words[kWords], tile[kWords];
    memcpy(tile, tiles + at, sizeof tile);
    transpose(tile, words);
    if (inputs == kTileInputs<Weight>) {  // the length is known to the compiler
      for (int64_t r = 0; r < rows; ++r) memcpy(matrix + (n + r) * K + k, words + r * kTileGroups, 4 * kTileGroups);
    } else {
      for (int64_t r = 0; r < rows; ++r)
        memcpy(matrix + (n + r) * K + k, words + r * kTileGroups, inputs * sizeof(Weight));
    }
  });
}

template void tile(const float*, int64_t, int64_t, float*, const Run&);
template void tile(const Bfloat16*, int64_t, int64_t, Bfloat16*, const Run&);
template void tile(const Float16*, int64_t, int64_t, Float16*, const Run&);
template void tile(const int8_t*, int64_t, int64_t, int8_t*, const Run&);
template void untile(const float*, int64_t, int64_t, float*, const Run&);
template void untile(const Bfloat16*, int64_t, int64_t, Bfloat16*, const Run&);
template void untile(const Float16*, int64_t, int64_t, Float16*, const Run&);
template void untile(const int8_t*, int64_t, int64_t, int8_t*, const Run&);

}  // namespace rwkv::cpu

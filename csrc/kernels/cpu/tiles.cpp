#include "kernels/cpu/tiles.h"

#include <algorithm>
#include <cstring>

namespace rwkv::cpu {
namespace {

// Calls move(tile, n, k, inputs) for every row n of a block and the first input k of each of its groups; `tile` is
// where in the tiles the group has this row's inputs.
template <class Weight, class Move>
void for_each_piece(int64_t N, int64_t K, const Run& run, const Move& move) {
  constexpr int P = kGroupInputs<Weight>;
  const int64_t padded = tiles_per_block<Weight>(K) * kTileInputs<Weight>;
  run(tile_blocks(N), [=](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      for (int64_t k = 0; k < padded; k += P)
        for (int64_t r = 0; r < kTileRows; ++r)
          move(((block * padded + k) * kTileRows) + r * P, block * kTileRows + r, k, std::clamp<int64_t>(K - k, 0, P));
  });
}

}  // namespace

template <class Weight>
void tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles, const Run& run) {
  for_each_piece<Weight>(N, K, run, [=](int64_t at, int64_t n, int64_t k, int64_t inputs) {
    Weight piece[kGroupInputs<Weight>] = {};
    if (n < N) std::copy_n(matrix + n * K + k, inputs, piece);
    memcpy(tiles + at, piece, sizeof piece);
  });
}

template <class Weight>
void untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix, const Run& run) {
  for_each_piece<Weight>(N, K, run, [=](int64_t at, int64_t n, int64_t k, int64_t inputs) {
    if (n < N) std::copy_n(tiles + at, inputs, matrix + n * K + k);
  });
}

template void tile(const float*, int64_t, int64_t, float*, const Run&);
template void tile(const Bfloat16*, int64_t, int64_t, Bfloat16*, const Run&);
template void tile(const Float16*, int64_t, int64_t, Float16*, const Run&);
template void untile(const float*, int64_t, int64_t, float*, const Run&);
template void untile(const Bfloat16*, int64_t, int64_t, Bfloat16*, const Run&);
template void untile(const Float16*, int64_t, int64_t, Float16*, const Run&);

}  // namespace rwkv::cpu

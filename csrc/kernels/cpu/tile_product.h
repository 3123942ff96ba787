// W x for a few rows x and 16 rows of a matrix W in tiles (kernels/tiles.h); activations and sums in float32.
// Torch-free.
#pragma once

#include "kernels/cpu/lanes.h"

namespace rwkv::cpu {

// Rows of activations that share one reading of the weights.
constexpr int kSharing = 4;

// sums[b][r] = sum over k of W[r, k] x[b][k], for `batch` rows x of `tiles` whole tiles each (zeros behind K), of which
// the next begins `stride` numbers later. A sum is added up in the same order whatever the batch: four partial sums.
template <class Weight, int batch>
RWKV_INLINE void shared_product(const Weight* __restrict block, int64_t tiles, const float* __restrict x,
                                int64_t stride, Lanes* __restrict sums) {
  constexpr int P = kGroupInputs<Weight>, kPartial = 4;
  Lanes partial[kPartial][batch] = {};
  const int64_t inputs = tiles * kTileInputs<Weight>;
  for (int64_t k = 0; k < inputs; k += kPartial) {
#pragma GCC unroll 4
    for (int i = 0; i < kPartial; ++i) {
      const Lanes w = widen_group<Weight>(load_bits(block + (k + i - i % P) * kTileRows), i % P);
#pragma GCC unroll 4
      for (int b = 0; b < batch; ++b) partial[i][b] += w * x[b * stride + k + i];
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < batch; ++b) sums[b] = (partial[0][b] + partial[1][b]) + (partial[2][b] + partial[3][b]);
}

// The same for any batch; sums hold `batch` rows.
template <class Weight>
inline void tile_product(const Weight* block, int64_t tiles, const float* x, int64_t stride, int64_t batch,
                         Lanes* sums) {
  int64_t b = 0;
  for (; b + kSharing <= batch; b += kSharing)
    shared_product<Weight, kSharing>(block, tiles, x + b * stride, stride, sums + b);
  for (; b < batch; ++b) shared_product<Weight, 1>(block, tiles, x + b * stride, stride, sums + b);
}

// Where block i of a matrix with K inputs begins.
template <class Weight>
RWKV_INLINE const Weight* tile_block(const Weight* matrix, int64_t i, int64_t K) {
  return matrix + i * tiles_per_block<Weight>(K) * kTileInputs<Weight> * kTileRows;
}

}  // namespace rwkv::cpu

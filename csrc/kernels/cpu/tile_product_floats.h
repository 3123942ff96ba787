// The product of cpu/tile_product.h with float weights. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/tile_product.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// Weights are prefetched this many bytes ahead, across blocks. The hardware's own prefetchers stop at pages of 4 KB.
constexpr int64_t kTileProductAhead = 4096;

template <class Weight>
int64_t whole_tiles(int64_t K) {
  return tiles_per_block<Weight>(K) * kTileInputs<Weight>;
}

// Float weights. Prepared activations are float32, row-major, with zeros after K.
template <class Weight>
struct TileProduct {
  static constexpr int kSharing = 4;

  static int64_t prepared_size(int64_t K) { return whole_tiles<Weight>(K) * sizeof(float); }

  template <int sharing>
  static void prepare(const Matrix& matrix, const float* x, int i, void* set) {
    const int64_t K = matrix.K, inputs = whole_tiles<Weight>(K);
    float* const row = static_cast<float*>(set) + i * inputs;
    std::copy_n(x, K, row);
    std::fill(row + K, row + inputs, 0.0f);
  }

  // Always four partial sums, whatever the number of rows.
  template <int sharing>
  static void multiply(const Matrix& matrix, int64_t block, const void* set, Lanes* __restrict sums) {
    constexpr int P = kGroupInputs<Weight>, kPartial = 4;
    const int64_t inputs = whole_tiles<Weight>(matrix.K);
    const Weight* __restrict weights = matrix.as<Weight>() + block * inputs * kTileRows;
    const float* __restrict x = static_cast<const float*>(set);
    Lanes partial[kPartial][sharing] = {};
    for (int64_t k = 0; k < inputs; k += kPartial) {
      const auto* const step = reinterpret_cast<const char*>(weights + k * kTileRows);
#pragma GCC unroll 4
      for (size_t line = 0; line < kPartial * kTileRows * sizeof(Weight); line += 64)
        __builtin_prefetch(step + kTileProductAhead + line);
#pragma GCC unroll 4
      for (int i = 0; i < kPartial; ++i) {
        const Lanes w = widen_group<Weight>(load_bits(weights + (k + i - i % P) * kTileRows), i % P);
#pragma GCC unroll 4
        for (int b = 0; b < sharing; ++b) partial[i][b] += w * x[b * inputs + k + i];
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < sharing; ++b) sums[b] = (partial[0][b] + partial[1][b]) + (partial[2][b] + partial[3][b]);
  }
};

#ifdef __AVX512F__
// float16 weights where an instruction converts 16 of them. Both inputs of a group are converted side by side, so a sum
// has a lane for each, and the lanes of a row are added at the end. Prepared activations are as for other floats.
template <>
template <int sharing>
void TileProduct<Float16>::multiply(const Matrix& matrix, int64_t block, const void* set, Lanes* __restrict sums) {
  constexpr int kGroups = 2;  // always two, whatever the number of rows
  const int64_t inputs = whole_tiles<Float16>(matrix.K);
  const Float16* __restrict weights = matrix.as<Float16>() + block * inputs * kTileRows;
  const float* __restrict x = static_cast<const float*>(set);
  Lanes low[kGroups][sharing] = {}, high[kGroups][sharing] = {};  // of rows 0 to 7, and 8 to 15
  for (int64_t k = 0; k < inputs; k += 2 * kGroups)
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      const Float16* const group = weights + (k + 2 * g) * kTileRows;
      __builtin_prefetch(reinterpret_cast<const char*>(group) + kTileProductAhead);
      const Lanes of_low = widen_row(group), of_high = widen_row(group + kTileRows);
#pragma GCC unroll 4
      for (int b = 0; b < sharing; ++b) {
        double pair;
        memcpy(&pair, x + b * inputs + k + 2 * g, sizeof pair);
        const Lanes both = (Lanes)_mm512_set1_pd(pair);
        low[g][b] += of_low * both, high[g][b] += of_high * both;
      }
    }
#pragma GCC unroll 4
  for (int b = 0; b < sharing; ++b) {
    const Lanes a = low[0][b] + low[1][b], z = high[0][b] + high[1][b];
    sums[b] = __builtin_shufflevector(a, z, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
              __builtin_shufflevector(a, z, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  }
}
#endif

}  // namespace rwkv::cpu

// A panel for int4 weights in tiles, see cpu/panel.h. Torch-free.
#pragma once

#include "kernels/cpu/int4.h"
#include "kernels/cpu/panel.h"

namespace rwkv::cpu {

// Activations are packed as for int8, and after them the sums of the numbers of each tile.
template <>
struct Panel<Int4> : PanelOf<kPanelRows> {
  using Int8 = Panel<int8_t>;
  static constexpr int64_t kTilesOfScale = kQuantized / kInt4Inputs;

  static int64_t tiles_of(int64_t K) { return (K + kInt4Inputs - 1) / kInt4Inputs; }
  static int64_t size(int64_t K) { return Int8::size(K) + tiles_of(K) * kRows * sizeof(float); }

  static void pack(const float* x, int64_t rows, const Matrix& matrix, char* panel) {
    Int8::pack(x, rows, matrix, panel);
    const auto* const numbers = reinterpret_cast<const Int8::Numbers*>(panel);
    auto* const totals = reinterpret_cast<float*>(panel + Int8::size(matrix.K));
    std::fill_n(totals, tiles_of(matrix.K) * kRows, 0.0f);
    for (int64_t g = 0; g < groups_of<int8_t>(matrix.K); ++g)
      for (int i = 0; i < kRows; ++i)
        for (uint32_t pair : numbers[g * kRows + i].pair)
          totals[g / kTileGroups * kRows + i] +=
              static_cast<int16_t>(pair) + static_cast<int16_t>(pair >> 16);  // exact
  }

  // `words` are those of whole tiles.
  static void add(const LaneBits* const* words, const char* panel, int64_t K, int64_t first_word, int64_t n_words,
                  Sums& __restrict sums) {
    const auto* const numbers = reinterpret_cast<const Int8::Numbers*>(panel);
    const auto* const scales = reinterpret_cast<const float*>(numbers + groups_of<int8_t>(K) * kRows);
    const auto* const totals = reinterpret_cast<const float*>(panel + Int8::size(K));
    for (int64_t word = 0; word < n_words; word += kInt4Words) {
      const int64_t tile = (first_word + word) / kInt4Words;
      const Int8::Numbers* x = numbers + tile * kTileGroups * kRows;
      LaneInts products[kRows][kBlocks] = {};
      for (int w = 1; w < kInt4Words; ++w, x += 2 * kRows) {
        LaneBits bits[kBlocks];
        Pairs pairs[kBlocks];
#pragma GCC unroll 2
        for (int j = 0; j < kBlocks; ++j) bits[j] = load_bits(words[j] + word + w), pairs[j] = low_pairs(bits[j]);
        add_inputs(pairs, x, products);
#pragma GCC unroll 2
        for (int j = 0; j < kBlocks; ++j) pairs[j] = high_pairs(bits[j]);
        add_inputs(pairs, x + kRows, products);
      }
      const float* const scale = scales + tile / kTilesOfScale * kRows;
      const float* const total = totals + tile * kRows;
#pragma GCC unroll 2
      for (int j = 0; j < kBlocks; ++j) {
        const Int4Group group(load_bits(words[j] + word));
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i) sums[i][j] += group.sum(products[i][j], total[i]) * scale[i];
      }
    }
  }

  static RWKV_INLINE void add_inputs(const Pairs* w, const Int8::Numbers* x, LaneInts (*products)[kBlocks]) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kBlocks; ++j)
        products[i][j] = add_pairs(add_pairs(products[i][j], w[j].even, x[i].pair[0]), w[j].odd, x[i].pair[1]);
  }
};

}  // namespace rwkv::cpu

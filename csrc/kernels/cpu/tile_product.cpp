#include "kernels/cpu/tile_product.h"

#include <algorithm>

#include "kernels/cpu/int4.h"
#include "kernels/cpu/quantized.h"
#include "kernels/cpu/row_sets.h"
#include "kernels/cpu/tile_product_floats.h"

namespace rwkv::cpu {
// int8 weights. Prepared activations are integers in pairs, with zeros after K: the next four inputs of all rows of a
// set, then the following four. After them come the scales, those of all rows for each group.
template <>
struct TileProduct<int8_t> {
  static constexpr int kSharing = cpu::kSharing;
  static constexpr int64_t kWords = kQuantized / kGroupInputs<int8_t>;  // of 64 bytes, that a group spans
  struct Numbers {
    uint32_t pair[2];
  };

  static int64_t prepared_size(int64_t K) {
    return (words_of(K) * sizeof(Numbers) + quantized_groups(K) * sizeof(float) + 63) / 64 * 64;
  }
  static int64_t words_of(int64_t K) { return tiles_per_block<int8_t>(K) * kTileGroups; }

  template <int sharing>
  static void prepare(const Matrix& matrix, const float* x, int i, void* set) {
    const int64_t K = matrix.K, words = words_of(K);
    auto* const to = static_cast<Numbers*>(set);
    auto* const scales = reinterpret_cast<float*>(to + words * sharing);
    for (int64_t k = 0, word = 0; k < K; k += kQuantized) {
      alignas(64) int16_t numbers[kQuantized] = {};
      scales[k / kQuantized * sharing + i] = quantize(x + k, matrix.columns + k, std::min(kQuantized, K - k), numbers);
      order_in_pairs(numbers);
      for (int64_t j = 0; j < kWords && word < words; ++j, ++word) memcpy(to + word * sharing + i, numbers + 4 * j, 8);
    }
  }

  template <int sharing>
  static void multiply(const Matrix& matrix, int64_t block, const void* set, Lanes* __restrict sums) {
    // The order of integer additions does not matter. More sums than rows hide the latency of the additions.
    constexpr int kChains = sharing >= 4 ? 1 : 4 / sharing;
    const int64_t words = words_of(matrix.K), n = block * kTileRows;
    const int8_t* __restrict weights = matrix.as<int8_t>() + block * words * 4 * kTileRows;
    const auto* __restrict x = static_cast<const Numbers*>(set);
    const auto* __restrict scale = reinterpret_cast<const float*>(x + words * sharing);
#pragma GCC unroll 16
    for (int b = 0; b < sharing; ++b) sums[b] = Lanes{};
    for (int64_t first = 0; first < words; first += kWords, scale += sharing) {
      LaneInts whole[kChains][sharing] = {};
      const int64_t end = std::min(words, first + kWords);  // whole tiles: a multiple of 16
      for (int64_t word = first; word < end; word += kChains)
#pragma GCC unroll 4
        for (int i = 0; i < kChains; ++i, x += sharing) {
          const int8_t* const from = weights + (word + i) * 4 * kTileRows;
          __builtin_prefetch(from + kTileProductAhead);
          const Pairs w = pairs_of(load_bits(from));
#pragma GCC unroll 16
          for (int b = 0; b < sharing; ++b)
            whole[i][b] = add_pairs(add_pairs(whole[i][b], w.even, x[b].pair[0]), w.odd, x[b].pair[1]);
        }
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) {
        LaneInts sum = whole[0][b];
#pragma GCC unroll 4
        for (int i = 1; i < kChains; ++i) sum += whole[i][b];
        sums[b] += to_float(sum) * scale[b];
      }
    }
    float rows[kTileRows] = {};
    std::copy_n(matrix.rows + n, std::min<int64_t>(kTileRows, matrix.N - n), rows);
#pragma GCC unroll 16
    for (int b = 0; b < sharing; ++b) sums[b] *= load_lanes(rows);
  }
};

// int4 weights. Prepared activations are as for int8, and after them the sums of the numbers of each tile.
template <>
struct TileProduct<Int4> {
  using Int8 = TileProduct<int8_t>;
  static constexpr int kSharing = Int8::kSharing;
  static constexpr int kWords = kInt4Inputs / 4;  // of four inputs of a row of activations, for a tile

  static int64_t tiles_of(int64_t K) { return (K + kInt4Inputs - 1) / kInt4Inputs; }
  static int64_t prepared_size(int64_t K) {
    return Int8::prepared_size(K) + (tiles_of(K) * sizeof(float) + 63) / 64 * 64;
  }

  template <int sharing>
  static void prepare(const Matrix& matrix, const float* x, int i, void* set) {
    Int8::prepare<sharing>(matrix, x, i, set);
    const auto* numbers = static_cast<const Int8::Numbers*>(set) + i;
    float* const totals = totals_of(set, sharing, matrix.K);
    for (int64_t tile = 0; tile < tiles_of(matrix.K); ++tile) {
      float total = 0;
      for (int w = 0; w < kWords; ++w, numbers += sharing)
        for (uint32_t pair : numbers->pair)
          total += static_cast<int16_t>(pair) + static_cast<int16_t>(pair >> 16);  // exact
      totals[tile * sharing + i] = total;
    }
  }
  template <class Set>
  static auto totals_of(Set* set, int sharing, int64_t K) {
    using Float = std::conditional_t<std::is_const_v<Set>, const float, float>;
    using Char = std::conditional_t<std::is_const_v<Set>, const char, char>;
    return reinterpret_cast<Float*>(static_cast<Char*>(set) + sharing * Int8::prepared_size(K));
  }

  template <int sharing>
  static void multiply(const Matrix& matrix, int64_t block, const void* set, Lanes* __restrict sums) {
    constexpr int kChains = sharing >= 4 ? 1 : 2;
    const int64_t tiles = tiles_of(matrix.K);
    const char* __restrict word = matrix.as<char>() + block * tiles * kInt4Words * 64;
    const auto* __restrict x = static_cast<const Int8::Numbers*>(set);
    const float* __restrict scale = reinterpret_cast<const float*>(x + Int8::words_of(matrix.K) * sharing);
    const float* __restrict total = totals_of(set, sharing, matrix.K);
#pragma GCC unroll 16
    for (int b = 0; b < sharing; ++b) sums[b] = Lanes{};
    for (int64_t tile = 0; tile < tiles; ++tile, total += sharing) {
      if (tile && tile % (kQuantized / kInt4Inputs) == 0) scale += sharing;
      __builtin_prefetch(word + kTileProductAhead);
      const Int4Group group(load_bits(word));
      word += 64;
      LaneInts products[kChains][sharing] = {};
#pragma GCC unroll 8
      for (int w = 1; w < kInt4Words; ++w, word += 64, x += 2 * sharing) {
        __builtin_prefetch(word + kTileProductAhead);
        const LaneBits bits = load_bits(word);
        const Pairs low = low_pairs(bits), high = high_pairs(bits);
#pragma GCC unroll 16
        for (int b = 0; b < sharing; ++b) {
          LaneInts& first = products[0][b];
          first = add_pairs(add_pairs(first, low.even, x[b].pair[0]), low.odd, x[b].pair[1]);
          LaneInts& second = products[kChains - 1][b];
          second = add_pairs(add_pairs(second, high.even, x[sharing + b].pair[0]), high.odd, x[sharing + b].pair[1]);
        }
      }
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) {
        const LaneInts whole = kChains == 1 ? products[0][b] : products[0][b] + products[1][b];
        sums[b] += group.sum(whole, total[b]) * scale[b];
      }
    }
  }
};

int64_t prepared_size(const Matrix& matrix) {
  return for_format(matrix.format, [&]<class Weight>(Weight) { return TileProduct<Weight>::prepared_size(matrix.K); });
}

void prepare(const Matrix& matrix, const float* x, int64_t b, int64_t B, void* prepared) {
  for_format(matrix.format, [&]<class Weight>(Weight) {
    using Product = TileProduct<Weight>;
    for_each_set<Product::kSharing>(B, [&](auto sharing, int64_t first) {
      char* const set = static_cast<char*>(prepared) + first * Product::prepared_size(matrix.K);
      if (first <= b && b < first + sharing) Product::template prepare<sharing()>(matrix, x, b - first, set);
    });
  });
}

void prepare_rows(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run) {
  run(B, 8 * matrix.K, [=, &matrix](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) prepare(matrix, x + b * matrix.K, b, B, prepared);
  });
}

void tile_product(const Matrix& matrix, int64_t block, const void* prepared, int64_t B, Lanes* sums) {
  for_format(matrix.format, [&]<class Weight>(Weight) {
    using Product = TileProduct<Weight>;
    for_each_set<Product::kSharing>(B, [&](auto sharing, int64_t first) {
      const char* const set = static_cast<const char*>(prepared) + first * Product::prepared_size(matrix.K);
      Product::template multiply<sharing()>(matrix, block, set, sums + first);
    });
  });
}

}  // namespace rwkv::cpu

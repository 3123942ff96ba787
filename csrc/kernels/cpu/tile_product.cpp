#include "kernels/cpu/tile_product.h"

#include <algorithm>

#include "kernels/cpu/quantized.h"
#include "kernels/cpu/row_sets.h"

namespace rwkv::cpu {
namespace {

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

// int8 weights. Prepared activations are integers in pairs, with zeros after K: the next four inputs of all rows of a
// set, then the following four. After them come the scales, those of all rows for each group.
template <>
struct TileProduct<int8_t> {
  static constexpr int kSharing = cpu::kSharing;
  static constexpr int64_t kWords = kQuantized / kGroupInputs<int8_t>;  // of 64 bytes, that a group spans
  static constexpr int64_t kPrefetch = 2048;                            // bytes
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
      order_in_pairs(numbers, kQuantized);
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
          if constexpr (sharing > 2) __builtin_prefetch(from + kPrefetch);
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

}  // namespace

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

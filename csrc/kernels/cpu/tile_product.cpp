#include "kernels/cpu/tile_product.h"

#include <algorithm>

#include "kernels/cpu/quantized.h"

namespace rwkv::cpu {
namespace {

template <class Weight>
int64_t whole_tiles(int64_t K) {
  return tiles_per_block<Weight>(K) * kTileInputs<Weight>;
}

// Float weights. Prepared: float32, zeros behind K.
template <class Weight>
struct TileProduct {
  static constexpr int kSharing = 4;  // rows of activations that share one reading of the weights

  static int64_t prepared_size(int64_t K) { return whole_tiles<Weight>(K) * sizeof(float); }

  static void prepare(const Matrix& matrix, const float* x, void* to) {
    auto* const prepared = static_cast<float*>(to);
    std::copy_n(x, matrix.K, prepared);
    std::fill(prepared + matrix.K, prepared + whole_tiles<Weight>(matrix.K), 0.0f);
  }

  // Four partial sums whatever the batch.
  template <int batch>
  static void multiply(const Matrix& matrix, int64_t block, const void* prepared, Lanes* __restrict sums) {
    constexpr int P = kGroupInputs<Weight>, kPartial = 4;
    const int64_t inputs = whole_tiles<Weight>(matrix.K);
    const Weight* __restrict weights = matrix.as<Weight>() + block * inputs * kTileRows;
    const float* __restrict x = static_cast<const float*>(prepared);
    Lanes partial[kPartial][batch] = {};
    for (int64_t k = 0; k < inputs; k += kPartial) {
#pragma GCC unroll 4
      for (int i = 0; i < kPartial; ++i) {
        const Lanes w = widen_group<Weight>(load_bits(weights + (k + i - i % P) * kTileRows), i % P);
#pragma GCC unroll 4
        for (int b = 0; b < batch; ++b) partial[i][b] += w * x[b * inputs + k + i];
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < batch; ++b) sums[b] = (partial[0][b] + partial[1][b]) + (partial[2][b] + partial[3][b]);
  }
};

// int8 weights. Prepared: whole numbers in pairs, zeros behind K, then the scales of their groups.
template <>
struct TileProduct<int8_t> {
#ifdef __AVX512BW__
  static constexpr int kSharing = 8;
#else
  static constexpr int kSharing = 4;
#endif
  static constexpr int64_t kWords = kQuantized / kGroupInputs<int8_t>;  // of 64 bytes, that a group spans

  static int64_t prepared_size(int64_t K) {
    return (whole_tiles<int8_t>(K) * sizeof(int16_t) + quantized_groups(K) * sizeof(float) + 63) / 64 * 64;
  }

  static void prepare(const Matrix& matrix, const float* x, void* prepared) {
    const int64_t K = matrix.K, inputs = whole_tiles<int8_t>(K);
    auto* const numbers = static_cast<int16_t*>(prepared);
    auto* const scales = reinterpret_cast<float*>(numbers + inputs);
    for (int64_t k = 0; k < K; k += kQuantized)
      scales[k / kQuantized] = quantize(x + k, matrix.columns + k, std::min(kQuantized, K - k), numbers + k);
    std::fill(numbers + K, numbers + inputs, 0);
    order_in_pairs(numbers, inputs);
  }

  template <int batch>
  static void multiply(const Matrix& matrix, int64_t block, const void* x, Lanes* __restrict sums) {
    // Whole numbers may be added in any order: more sums than rows keep the processor busy while one waits.
    constexpr int kChains = batch >= 4 ? 1 : 4 / batch;
    const int64_t K = matrix.K, inputs = whole_tiles<int8_t>(K), size = prepared_size(K);
    const int8_t* __restrict weights = matrix.as<int8_t>() + block * inputs * kTileRows;
    const int64_t words = inputs / kGroupInputs<int8_t>;
    const char* __restrict rows = static_cast<const char*>(x);
#pragma GCC unroll 8
    for (int b = 0; b < batch; ++b) sums[b] = Lanes{};
    for (int64_t first = 0; first < words; first += kWords) {
      LaneInts whole[kChains][batch] = {};
      const int64_t end = std::min(words, first + kWords);  // whole tiles: a multiple of 16
      for (int64_t word = first; word < end; word += kChains)
#pragma GCC unroll 4
        for (int i = 0; i < kChains; ++i) {
          const Pairs w = pairs_of(load_bits(weights + (word + i) * 4 * kTileRows));
#pragma GCC unroll 8
          for (int b = 0; b < batch; ++b) {
            uint32_t pair[2];
            memcpy(pair, rows + b * size + (word + i) * sizeof pair, sizeof pair);
            whole[i][b] = add_pairs(add_pairs(whole[i][b], w.even, pair[0]), w.odd, pair[1]);
          }
        }
#pragma GCC unroll 8
      for (int b = 0; b < batch; ++b) {
        LaneInts sum = whole[0][b];
#pragma GCC unroll 4
        for (int i = 1; i < kChains; ++i) sum += whole[i][b];
        float scale;
        memcpy(&scale, rows + b * size + inputs * sizeof(int16_t) + first / kWords * sizeof scale, sizeof scale);
        sums[b] += to_float(sum) * scale;
      }
    }
    float scales[kTileRows] = {};
    const int64_t n = block * kTileRows;
    std::copy_n(matrix.rows + n, std::min<int64_t>(kTileRows, matrix.N - n), scales);
#pragma GCC unroll 8
    for (int b = 0; b < batch; ++b) sums[b] *= load_lanes(scales);
  }
};

}  // namespace

int64_t prepared_size(const Matrix& matrix) {
  return for_format(matrix.format, [&]<class Weight>(Weight) { return TileProduct<Weight>::prepared_size(matrix.K); });
}

void prepare(const Matrix& matrix, const float* x, void* prepared) {
  for_format(matrix.format, [&]<class Weight>(Weight) { TileProduct<Weight>::prepare(matrix, x, prepared); });
}

void prepare_rows(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run) {
  const int64_t size = prepared_size(matrix);
  run(B, [=, &matrix](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) prepare(matrix, x + b * matrix.K, static_cast<char*>(prepared) + b * size);
  });
}

void tile_product(const Matrix& matrix, int64_t block, const void* prepared, int64_t batch, Lanes* sums) {
  for_format(matrix.format, [&]<class Weight>(Weight) {
    using Product = TileProduct<Weight>;
    const char* const rows = static_cast<const char*>(prepared);
    const int64_t size = Product::prepared_size(matrix.K);
    int64_t b = 0;
    for (; b + Product::kSharing <= batch; b += Product::kSharing)
      Product::template multiply<Product::kSharing>(matrix, block, rows + b * size, sums + b);
    for (; b < batch; ++b) Product::template multiply<1>(matrix, block, rows + b * size, sums + b);
  });
}

}  // namespace rwkv::cpu

// A panel is a set of rows of activations, packed to be multiplied by blocks of 16 outputs in registers. Torch-free.
//
// Weights are in groups of 64 bytes (kernels/tiles.h): the next 4 bytes of inputs of 16 rows.
#pragma once

#include <algorithm>

#include "kernels/cpu/quantized.h"
#include "kernels/matrix.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace rwkv::cpu {

// As many rows and blocks as fit into the registers of the instruction set level.
#if defined(__AVX512F__)
constexpr int kPanelRows = 12, kBlocks = 2;
#elif defined(__AVX2__)
constexpr int kPanelRows = 6, kBlocks = 1;
#else
constexpr int kPanelRows = 3, kBlocks = 1;
#endif

// What the panels of all formats have.
template <int rows>
struct PanelOf {
  static constexpr int kRows = rows;
  using Sums = Lanes[kRows][kBlocks];
};

template <class Weight>
int64_t groups_of(int64_t K) {
  return tiles_per_block<Weight>(K) * kTileGroups;
}

// Panel<Weight> packs rows and multiplies them. They take size(K) bytes; add() adds the products of groups [g, g +
// depth) to the sums. Activations stay float32, except with bfloat16 pairs and with int8 weights.
template <class Weight>
struct Panel;

// Calls fn(g, i, x) for every group g of inputs and every row i of a panel; x is zero after `rows` rows and after K,
// and times the scales of the columns of weights, if there are any.
template <class Weight, class Function>
void for_each_group(const float* x, int64_t rows, const Matrix& matrix, const Function& fn) {
  constexpr int P = kGroupInputs<Weight>;
  const int64_t K = matrix.K;
  for (int i = 0; i < Panel<Weight>::kRows; ++i)
    for (int64_t g = 0; g < groups_of<Weight>(K); ++g) {
      float inputs[P] = {};
      if (i < rows)
        for (int p = 0; p < P && g * P + p < K; ++p) {
          const int64_t k = g * P + p;
          inputs[p] = matrix.columns ? x[i * K + k] * matrix.columns[k] : x[i * K + k];
        }
      fn(g, i, inputs);
    }
}

template <class Weight>
struct Panel : PanelOf<kPanelRows> {
  static constexpr int P = kGroupInputs<Weight>;

  static int64_t size(int64_t K) { return groups_of<Weight>(K) * kRows * P * sizeof(float); }

  static void pack(const float* x, int64_t rows, const Matrix& matrix, char* panel) {
    for_each_group<Weight>(x, rows, matrix, [=](int64_t g, int i, const float* inputs) {
      std::copy_n(inputs, P, reinterpret_cast<float*>(panel) + (g * kRows + i) * P);
    });
  }

  static void add(const LaneBits* const* weights, const char* panel, int64_t, int64_t g, int64_t depth,
                  Sums& __restrict sums) {
    const float* x = reinterpret_cast<const float*>(panel) + g * kRows * P;
    Lanes added[kRows][kBlocks] = {};
    for (int64_t d = 0; d < depth; ++d, x += kRows * P) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        Lanes w[kBlocks];
#pragma GCC unroll 2
        for (int j = 0; j < kBlocks; ++j) w[j] = widen_group<Weight>(load_bits(weights[j] + d), p);
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
          for (int j = 0; j < kBlocks; ++j) added[i][j] += w[j] * x[i * P + p];
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kBlocks; ++j) sums[i][j] += added[i][j];
  }
};

inline uint32_t rounded_to_bfloat16(float x) {  // its bits; to nearest, ties to even; keeps NaN
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

#ifdef __AVX512BF16__
// Stands for bfloat16 weights that are multiplied by dot products of pairs, with activations rounded to bfloat16.
struct Bfloat16Pairs {
  uint16_t bits;
};

template <>
struct Panel<Bfloat16Pairs> : PanelOf<kPanelRows> {
  static int64_t size(int64_t K) { return groups_of<Bfloat16Pairs>(K) * kRows * sizeof(uint32_t); }

  static void pack(const float* x, int64_t rows, const Matrix& matrix, char* panel) {
    for_each_group<Bfloat16Pairs>(x, rows, matrix, [=](int64_t g, int i, const float* inputs) {
      reinterpret_cast<uint32_t*>(panel)[g * kRows + i] =
          rounded_to_bfloat16(inputs[0]) | rounded_to_bfloat16(inputs[1]) << 16;
    });
  }

  static void add(const LaneBits* const* weights, const char* panel, int64_t, int64_t g, int64_t depth,
                  Sums& __restrict sums) {
    const uint32_t* x = reinterpret_cast<const uint32_t*>(panel) + g * kRows;
    Lanes added[kRows][kBlocks] = {};
    for (int64_t d = 0; d < depth; ++d, x += kRows) {
      LaneBits w[kBlocks];
#pragma GCC unroll 2
      for (int j = 0; j < kBlocks; ++j) w[j] = load_bits(weights[j] + d);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kBlocks; ++j)
          added[i][j] = (Lanes)_mm512_dpbf16_ps((__m512)added[i][j], (__m512bh)_mm512_set1_epi32(x[i]), (__m512bh)w[j]);
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < kBlocks; ++j) sums[i][j] += added[i][j];
  }
};
#endif

// int8 weights. Activations are integers in pairs, then the scales of their groups. The sums still lack the scales of
// the rows of weights.
template <>
struct Panel<int8_t> : PanelOf<kPanelRows> {
  static constexpr int64_t kWords = kQuantized / kGroupInputs<int8_t>;  // of 64 bytes, that a group spans
  struct Numbers {
    uint32_t pair[2];
  };

  static int64_t size(int64_t K) {
    return groups_of<int8_t>(K) * kRows * sizeof(Numbers) + quantized_groups(K) * kRows * sizeof(float);
  }

  static void pack(const float* x, int64_t rows, const Matrix& matrix, char* panel) {
    const int64_t K = matrix.K, groups = groups_of<int8_t>(K);
    auto* const to = reinterpret_cast<Numbers*>(panel);
    auto* const scales = reinterpret_cast<float*>(to + groups * kRows);
    for (int i = 0; i < kRows; ++i)
      for (int64_t k = 0; k < K; k += kQuantized) {
        int16_t numbers[kQuantized] = {};
        const float scale =
            i < rows ? quantize(x + i * K + k, matrix.columns + k, std::min(kQuantized, K - k), numbers) : 0;
        scales[k / kQuantized * kRows + i] = scale;
        order_in_pairs(numbers);
        const int64_t first = k / 4, words = std::min(kWords, groups - first);
        for (int64_t g = 0; g < words; ++g) memcpy(to + (first + g) * kRows + i, numbers + 4 * g, sizeof *to);
      }
  }

  static void add(const LaneBits* const* weights, const char* panel, int64_t K, int64_t g, int64_t depth,
                  Sums& __restrict sums) {
    const auto* const numbers = reinterpret_cast<const Numbers*>(panel);
    const auto* const scales = reinterpret_cast<const float*>(numbers + groups_of<int8_t>(K) * kRows);
    for (int64_t first = 0; first < depth; first += kWords) {
      const int64_t end = std::min(depth, first + kWords);
      const Numbers* x = numbers + (g + first) * kRows;
      LaneInts whole[kRows][kBlocks] = {};
      for (int64_t d = first; d < end; ++d, x += kRows) {
        Pairs w[kBlocks];
#pragma GCC unroll 2
        for (int j = 0; j < kBlocks; ++j) w[j] = pairs_of(load_bits(weights[j] + d));
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
          for (int j = 0; j < kBlocks; ++j)
            whole[i][j] = add_pairs(add_pairs(whole[i][j], w[j].even, x[i].pair[0]), w[j].odd, x[i].pair[1]);
      }
      const float* const scale = scales + (g + first) / kWords * kRows;
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < kBlocks; ++j) sums[i][j] += to_float(whole[i][j]) * scale[i];
    }
  }
};

}  // namespace rwkv::cpu

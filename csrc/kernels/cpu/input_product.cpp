#include "kernels/cpu/input_product.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/active_rows.h"
#include "kernels/cpu/int4_rows.h"
#include "kernels/cpu/quantized.h"
#include "kernels/cpu/row_sets.h"

namespace rwkv::cpu {
namespace {

// Parts consist of whole groups of this many inputs.
constexpr int64_t kGroup = kQuantized;
// Float weights. Activations are used unchanged, and each column is summed input by input.
template <class Weight>
struct InputProduct {
  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N;
    std::fill_n(sums, B * N, 0.0f);
    std::vector<int64_t> active;
    active.reserve(kGroup);
    for (int64_t first = begin; first < end; first += kGroup) {
      find_active(x, B, matrix.K, first, std::min(end, first + kGroup), &active);
      for (int64_t i = 0; i < static_cast<int64_t>(active.size()); i += kTogether) {
        const ActiveRows chunk(matrix.weights, N * sizeof(Weight), active, i);
        for (int64_t b = 0; b < B; ++b) {
          float inputs[kTogether] = {};
          for (int64_t j = 0; j < chunk.n; ++j) inputs[j] = x[b * matrix.K + active[i + j]];
          const auto add_rows = chunk.n == kTogether ? &add<kTogether> : &add<1>;
          for (int64_t j = 0; j < chunk.n; j += chunk.n == kTogether ? kTogether : 1)
            add_rows(chunk, j, inputs, N, b == 0, sums + b * N);
        }
      }
    }
  }

  // Adds rows [first, first + n) of the chunk.
  template <int n>
  static void add(const ActiveRows& chunk, int64_t first, const float* inputs, int64_t N, bool prefetches,
                  float* __restrict sums) {
    constexpr int64_t kLine = 64 / sizeof(Weight);
    int64_t c = 0;
    for (; c + kTileRows <= N; c += kTileRows) {
      if (prefetches && c % kLine == 0) chunk.prefetch(c * sizeof(Weight));
      Lanes sum = load_lanes(sums + c);
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) sum += widen_row(chunk.row<Weight>(first + i) + c) * inputs[first + i];
      store_lanes(sums + c, sum);
    }
    if (c == N) return;
    for (int i = 0; i < n; ++i) {
      Weight tail[kTileRows] = {};
      std::copy_n(chunk.row<Weight>(first + i) + c, N - c, tail);
      const Lanes term = widen_row(tail) * inputs[first + i];
      for (int64_t j = c; j < N; ++j) sums[j] += term[j - c];
    }
  }
};

// int8 weights. Activations are quantised to integers (cpu/quantized.h), and added two inputs at a time.
template <>
struct InputProduct<int8_t> {
  static_assert(kGroup == kQuantized);
  static constexpr int64_t kPairs = kTogether / 2;

  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N, blocks = tile_blocks(N);
    std::vector<Lanes> floats(B * blocks);  // [set][column][row of the set]
    std::vector<LaneInts> ints(B * blocks);
    std::vector<int16_t> numbers(B * kQuantized);
    std::vector<float> scales(B);
    std::vector<int64_t> active;
    active.reserve(kQuantized);
    for (int64_t first = begin; first < end; first += kQuantized) {
      const int64_t n = std::min(kQuantized, end - first);
      for (int64_t b = 0; b < B; ++b)
        scales[b] = quantize(x + b * matrix.K + first, matrix.columns + first, n, &numbers[b * kQuantized]);
      find_active(x, B, matrix.K, first, first + n, &active);
      std::fill(ints.begin(), ints.end(), LaneInts{});
      for (int64_t i = 0; i < static_cast<int64_t>(active.size()); i += kTogether) {
        const ActiveRows chunk(matrix.weights, N, active, i);
        for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
          uint32_t pairs[kPairs][sharing()] = {};  // missing inputs are zero
          for (int64_t s = 0; s < sharing; ++s)
            for (int64_t j = 0; j < chunk.n; ++j) {
              const auto number = static_cast<uint16_t>(numbers[(b + s) * kQuantized + active[i + j] - first]);
              pairs[j / 2][s] |= static_cast<uint32_t>(number) << 16 * (j % 2);
            }
          add<sharing()>(chunk, pairs, N, b == 0, &ints[b * blocks]);
        });
      }
      for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
        for (int64_t s = 0; s < sharing; ++s)
          for (int64_t i = b * blocks + s; i < (b + sharing) * blocks; i += sharing)
            floats[i] += to_float(ints[i]) * scales[b + s];
      });
    }
    for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
      for (int64_t s = 0; s < sharing; ++s)
        for (int64_t n = 0; n < N; ++n)
          sums[(b + s) * N + n] = floats[b * blocks + n / kTileRows * sharing + s][n % kTileRows] * matrix.rows[n];
    });
  }

  // Adds the rows of the chunk to sums[column][b], 16 columns at a time in registers.
  template <int sharing>
  static void add(const ActiveRows& chunk, const uint32_t (*x)[sharing], int64_t N, bool prefetches,
                  LaneInts* __restrict sums) {
    for (int64_t c = 0; c < N; c += kTileRows, sums += sharing) {
      if (prefetches && c % 64 == 0) chunk.prefetch(c);
      const int64_t there = std::min<int64_t>(kTileRows, N - c);
      LaneInts sum[sharing];
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) sum[b] = sums[b];
#pragma GCC unroll 4
      for (int64_t p = 0; p < kPairs; ++p) {
        const LaneShorts w = interleaved(chunk.row<int8_t>(2 * p) + c, chunk.row<int8_t>(2 * p + 1) + c, there);
#pragma GCC unroll 16
        for (int b = 0; b < sharing; ++b) sum[b] = add_pairs(sum[b], w, x[p][b]);
      }
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) sums[b] = sum[b];
    }
  }

  // 16 columns of two inputs, of which `there` exist.
  static RWKV_INLINE LaneShorts interleaved(const int8_t* first, const int8_t* second, int64_t there) {
    int8_t tails[2][kTileRows] = {};
    if (there < kTileRows) {
      std::copy_n(first, there, tails[0]), std::copy_n(second, there, tails[1]);
      first = tails[0], second = tails[1];
    }
    return (LaneShorts)((widen_ints(first) & 0xffff) | widen_ints(second) << 16);
  }
};

// int4 weights, converted to float32 by a table for each group, and each column is summed input by input.
template <>
struct InputProduct<Int4> {
  static constexpr int kBlocks = kInt4Outputs / kTileRows;
  using Word = Lanes[kBlocks];

  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N, words = int4_row_words(N);
    std::vector<Lanes> whole(B * words * kBlocks);
    std::vector<float> parameters(kTogether * (4 * words + kTileRows));
    std::vector<int64_t> active;
    active.reserve(kGroup);
    for (int64_t first = begin; first < end; first += kGroup) {
      find_active(x, B, matrix.K, first, std::min(end, first + kGroup), &active);
      for (int64_t i = 0; i < static_cast<int64_t>(active.size()); i += kTogether) {
        const ActiveRows chunk(matrix.weights, int4_row_bytes(N), active, i);
        std::vector<float> inputs(B * kTogether);  // missing ones are zero
        for (int64_t b = 0; b < B; ++b)
          for (int64_t j = 0; j < chunk.n; ++j) {
            const int64_t k = active[i + j];
            inputs[b * kTogether + j] = x[b * matrix.K + k] * matrix.columns[k];
          }
        add(matrix, chunk, inputs.data(), B, parameters.data(), reinterpret_cast<Word*>(whole.data()));
      }
    }
    for (int64_t b = 0; b < B; ++b)
      std::copy_n(reinterpret_cast<const float*>(&whole[b * words * kBlocks]), N, sums + b * N);
  }

  // Adds the rows of the chunk to sums[b][word].
  static void add(const Matrix& matrix, const ActiveRows& chunk, const float* inputs, int64_t B, float* parameters,
                  Word* __restrict sums) {
    const int64_t words = int4_row_words(matrix.N), stride = 4 * words + kTileRows;
    const int64_t first = int4_row_bytes(matrix.N) - words * 64;
    for (int64_t offset = 0; offset < first; offset += 64) chunk.prefetch(offset);
    for (int64_t i = 0; i < kTogether; ++i) widen_parameters(chunk.rows[i], words, parameters + i * stride);
    for (int64_t word = 0; word < words; ++word) {
      const int64_t offset = first + word * 64;
      chunk.prefetch(offset);
      if (B == 1)
        add_word<true>(chunk, offset, parameters + 4 * word, stride, inputs, 1, words, sums + word);
      else
        add_word<false>(chunk, offset, parameters + 4 * word, stride, inputs, B, words, sums + word);
    }
  }

  // One row of activations uses each weight once, so that it need not be stored.
  template <bool alone>
  static RWKV_INLINE void add_word(const ActiveRows& chunk, int64_t offset, const float* parameters, int64_t stride,
                                   const float* inputs, int64_t B, int64_t words, Word* sums) {
    Word converted[kTogether], sum;
    memcpy(&sum, sums, sizeof sum);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kTogether; ++i) {
      const LaneBits bits = load_bits(chunk.rows[i] + offset);
      const float* const of_groups = parameters + i * stride;
      const Int4Values groups[2] = {{of_groups[0], of_groups[1]}, {of_groups[2], of_groups[3]}};
#pragma GCC unroll 8
      for (int j = 0; j < kBlocks; ++j) {
        const Lanes weights = groups[j / (kBlocks / 2)].at(bits >> 4 * j);
        if constexpr (alone)
          sum[j] += weights * inputs[i];
        else
          converted[i][j] = weights;
      }
    }
    for (int64_t b = 0; b < (alone ? 0 : B); ++b) {
      memcpy(&sum, sums + b * words, sizeof sum);
      for (int64_t i = 0; i < kTogether; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kBlocks; ++j) sum[j] += converted[i][j] * inputs[b * kTogether + i];
      memcpy(sums + b * words, &sum, sizeof sum);
    }
    if constexpr (alone) memcpy(sums, &sum, sizeof sum);
  }
};

}  // namespace

void input_product(const Matrix& matrix, const float* x, int64_t B, int64_t part, float* sums) {
  const int64_t groups = (matrix.K + kGroup - 1) / kGroup;
  const int64_t begin = groups * part / kInputParts * kGroup,
                end = std::min(matrix.K, groups * (part + 1) / kInputParts * kGroup);
  for_format(matrix.format,
             [&]<class Weight>(Weight) { InputProduct<Weight>::multiply(matrix, x, B, begin, end, sums); });
}

}  // namespace rwkv::cpu

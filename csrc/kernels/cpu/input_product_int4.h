// The product of cpu/input_product.h with int4 weights. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/active_rows.h"
#include "kernels/cpu/input_product_floats.h"
#include "kernels/cpu/int4_rows.h"
#include "kernels/cpu/scratch.h"

namespace rwkv::cpu {

// int4 weights, converted to float32 by a table for each group, and each column is summed input by input.
template <>
struct InputProduct<Int4> {
  static constexpr int kBlocks = kInt4Outputs / kTileRows;
  static constexpr int64_t kTogether = 8;
  using Rows = ActiveRows<kTogether>;
  using Word = Lanes[kBlocks];

  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N, words = int4_row_words(N);
    const auto [whole, parameters, inputs] =
        thread_buffers<Word, float, float>(B * words, kTogether * (4 * words + kTileRows), B * kTogether);
    std::fill_n(reinterpret_cast<float*>(whole), B * words * kInt4Outputs, 0.0f);
    for (int64_t first = begin; first < end; first += kGroup) {
      const ActiveInputs active(x, B, matrix.K, first, std::min(end, first + kGroup));
      for (int64_t i = 0; i < active.size(); i += kTogether) {
        const Rows rows(matrix.weights, int4_row_bytes(N), active, i);
        std::fill_n(inputs, B * kTogether, 0.0f);  // also those that are missing
        for (int64_t b = 0; b < B; ++b)
          for (int64_t j = 0; j < rows.n; ++j) {
            const int64_t k = active[i + j];
            inputs[b * kTogether + j] = x[b * matrix.K + k] * matrix.columns[k];
          }
        add(matrix, rows, inputs, B, parameters, whole);
      }
    }
    for (int64_t b = 0; b < B; ++b) std::copy_n(reinterpret_cast<const float*>(whole[b * words]), N, sums + b * N);
  }

  // Adds rows of weights to sums[b][word].
  static void add(const Matrix& matrix, const Rows& rows, const float* inputs, int64_t B, float* parameters,
                  Word* __restrict sums) {
    const int64_t words = int4_row_words(matrix.N), stride = 4 * words + kTileRows;
    const int64_t first = int4_row_bytes(matrix.N) - words * 64;
    for (int64_t offset = 0; offset < first; offset += 64) rows.prefetch(offset);
    for (int64_t i = 0; i < kTogether; ++i) widen_parameters(rows.rows[i], words, parameters + i * stride);
    for (int64_t word = 0; word < words; ++word) {
      const int64_t offset = first + word * 64;
      rows.prefetch(offset);
      if (B == 1)
        add_word<true>(rows, offset, parameters + 4 * word, stride, inputs, 1, words, sums + word);
      else
        add_word<false>(rows, offset, parameters + 4 * word, stride, inputs, B, words, sums + word);
    }
  }

  // One row of activations uses each weight once, so that it need not be stored.
  template <bool alone>
  static RWKV_INLINE void add_word(const Rows& rows, int64_t offset, const float* parameters, int64_t stride,
                                   const float* inputs, int64_t B, int64_t words, Word* sums) {
    Word converted[kTogether], sum;
    memcpy(&sum, sums, sizeof sum);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kTogether; ++i) {
      const LaneBits bits = load_bits(rows.rows[i] + offset);
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
    if constexpr (!alone)
      for_each_set<2>(B, [&](auto sharing, int64_t b) {
        add_converted<sharing()>(converted, inputs + b * kTogether, words, sums + b * words);
      });
    if constexpr (alone) memcpy(sums, &sum, sizeof sum);
  }

  // Adds the rows of one word, as float32, to `sharing` rows of sums.
  template <int sharing>
  static RWKV_INLINE void add_converted(const Word* converted, const float* inputs, int64_t words, Word* sums) {
    Word sum[sharing];
#pragma GCC unroll 2
    for (int s = 0; s < sharing; ++s) memcpy(&sum[s], sums + s * words, sizeof(Word));
    for (int i = 0; i < kTogether; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kBlocks; ++j) {
#pragma GCC unroll 2
        for (int s = 0; s < sharing; ++s) sum[s][j] += converted[i][j] * inputs[s * kTogether + i];
      }
    }
#pragma GCC unroll 2
    for (int s = 0; s < sharing; ++s) memcpy(sums + s * words, &sum[s], sizeof(Word));
  }
};

}  // namespace rwkv::cpu

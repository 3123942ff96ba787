// The product of cpu/input_product.h with int8 weights. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/active_rows.h"
#include "kernels/cpu/input_product_alone.h"
#include "kernels/cpu/input_product_floats.h"
#include "kernels/cpu/scratch.h"

namespace rwkv::cpu {

// int8 weights. Activations are quantised to integers (cpu/quantized.h), and added two inputs at a time. Few rows of
// activations wait for memory, so the weights are read from beginning to end; more of them are multiplied in strips.
template <>
struct InputProduct<int8_t> {
  static_assert(kGroup == kQuantized);
  static constexpr int kSharing = 4;

  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
#ifdef __AVX512VNNI__
    if (B == 1) return AloneProduct::multiply(matrix, x, begin, end, sums);
#endif
    const int64_t N = matrix.N, blocks = tile_blocks(N);
    const auto [floats, ints, numbers, scales] =  // the first two: [set][column][row of the set]
        thread_buffers<Lanes, LaneInts, int16_t, float>(B * blocks, B * blocks, B * kQuantized, B);
    std::fill_n(floats, B * blocks, Lanes{});
    for (int64_t first = begin; first < end; first += kQuantized) {
      const int64_t n = std::min(kQuantized, end - first);
      for (int64_t b = 0; b < B; ++b)
        scales[b] = quantize(x + b * matrix.K + first, matrix.columns + first, n, &numbers[b * kQuantized]);
      const ActiveInputs active(x, B, matrix.K, first, first + n);
      std::fill_n(ints, B * blocks, LaneInts{});
      for_together(B, [&](auto together) {
        for (int64_t i = 0; i < active.size(); i += together) {
          const ActiveRows<together> rows(matrix.weights, N, active, i);
          for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
            uint32_t pairs[together() / 2][sharing()] = {};  // missing inputs are zero
            for (int64_t j = 0; j < rows.n; ++j)
              for (int64_t s = 0; s < sharing; ++s) {
                const auto number = static_cast<uint16_t>(numbers[(b + s) * kQuantized + active[i + j] - first]);
                pairs[j / 2][s] |= static_cast<uint32_t>(number) << 16 * (j % 2);
              }
            add(rows, pairs, N, b == 0, &ints[b * blocks]);
          });
        }
      });
      for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
        for (int64_t s = 0; s < sharing; ++s)
          for (int64_t i = b * blocks + s; i < (b + sharing) * blocks; i += sharing)
            floats[i] += to_float(ints[i]) * scales[b + s];
      });
    }
    for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
      for (int64_t s = 0; s < sharing; ++s)
        for (int64_t i = 0; i < blocks; ++i) {
          const int64_t n = i * kTileRows, columns = std::min<int64_t>(kTileRows, N - n);
          const Lanes sum = floats[b * blocks + i * sharing + s];
          float* const to = sums + (b + s) * N + n;
          if (columns == kTileRows) {
            store_lanes(to, sum * load_lanes(matrix.rows + n));
          } else {
            for (int64_t c = 0; c < columns; ++c) to[c] = sum[c] * matrix.rows[n + c];
          }
        }
    });
  }

  // Adds rows of weights to sums[column][b], 16 columns at a time in registers.
  template <int64_t together, int sharing>
  static void add(const ActiveRows<together>& rows, const uint32_t (*x)[sharing], int64_t N, bool prefetches,
                  LaneInts* __restrict sums) {
    const int64_t pairs = (rows.n + 1) / 2;
    for (int64_t c = 0; c < N; c += kTileRows, sums += sharing) {
      if (prefetches && c % 64 == 0) rows.prefetch(c);
      const int64_t there = std::min<int64_t>(kTileRows, N - c);
      LaneInts sum[sharing];
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) sum[b] = sums[b];
      for (int64_t p = 0; p < pairs; ++p) {
        const LaneShorts w =
            interleaved(rows.template row<int8_t>(2 * p) + c, rows.template row<int8_t>(2 * p + 1) + c, there);
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

}  // namespace rwkv::cpu

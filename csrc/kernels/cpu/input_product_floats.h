// The product of cpu/input_product.h with float weights. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/active_rows.h"

namespace rwkv::cpu {

// InputProduct<Weight>::multiply adds inputs [begin, end). With float weights activations are used unchanged, and each
// column is summed input by input.
template <class Weight>
struct InputProduct {
  // Rows of activations, and vectors of 16 columns, whose sums are in registers.
  static constexpr int kSharing = 4, kVectors = 4;

  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N;
    std::fill_n(sums, B * N, 0.0f);
    for (int64_t first = begin; first < end; first += kGroup) {
      const ActiveInputs active(x, B, matrix.K, first, std::min(end, first + kGroup));
      for_together(B, [&](auto together) {
        for (int64_t i = 0; i < active.size(); i += together) {
          const ActiveRows<together> rows(matrix.weights, N * sizeof(Weight), active, i);
          for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
            float inputs[together()][sharing()];
            for (int64_t j = 0; j < rows.n; ++j)
              for (int64_t s = 0; s < sharing; ++s) inputs[j][s] = x[(b + s) * matrix.K + active[i + j]];
            add(rows, inputs, N, b == 0, sums + b * N);
          });
        }
      });
    }
  }

  // Adds rows of weights to `sharing` rows of sums.
  template <int64_t together, int sharing>
  static void add(const ActiveRows<together>& rows, const float (*x)[sharing], int64_t N, bool prefetches,
                  float* sums) {
    constexpr int64_t kWide = kVectors * kTileRows;
    int64_t c = 0;
    for (; c + kWide <= N; c += kWide) {
      for (size_t line = 0; prefetches && line < kWide * sizeof(Weight); line += 64)
        rows.prefetch(c * sizeof(Weight) + line);
      add_columns<kVectors>(rows, x, N, c, sums);
    }
    for (; c + kTileRows <= N; c += kTileRows) add_columns<1>(rows, x, N, c, sums);
    if (c == N) return;
    for (int64_t i = 0; i < rows.n; ++i) {
      Weight tail[kTileRows] = {};
      std::copy_n(rows.template row<Weight>(i) + c, N - c, tail);
      for (int s = 0; s < sharing; ++s) {
        const Lanes term = widen_row(tail) * x[i][s];
        for (int64_t j = c; j < N; ++j) sums[s * N + j] += term[j - c];
      }
    }
  }

  template <int vectors, int64_t together, int sharing>
  static RWKV_INLINE void add_columns(const ActiveRows<together>& rows, const float (*x)[sharing], int64_t N, int64_t c,
                                      float* sums) {
    Lanes sum[sharing][vectors];
#pragma GCC unroll 4
    for (int s = 0; s < sharing; ++s)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[s][v] = load_lanes(sums + s * N + c + v * kTileRows);
    for (int64_t i = 0; i < rows.n; ++i) {
      const Weight* const row = rows.template row<Weight>(i) + c;
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Lanes w = widen_row(row + v * kTileRows);
#pragma GCC unroll 4
        for (int s = 0; s < sharing; ++s) sum[s][v] += w * x[i][s];
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < sharing; ++s)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) store_lanes(sums + s * N + c + v * kTileRows, sum[s][v]);
  }
};

}  // namespace rwkv::cpu

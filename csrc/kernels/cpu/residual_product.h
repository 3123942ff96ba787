// The last part of time mixing: the output product, added to the residual stream. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_product.h"

namespace rwkv::cpu {

// y = x + W a for B rows: x and y (B, N), and the rows a, which `prepared` has room for when they are prepared.
inline void residual_product(const Matrix& matrix, const float* a, int64_t B, void* prepared, const float* x, float* y,
                             const Run& run) {
  const int64_t N = matrix.N;
  prepare_rows(matrix, a, B, prepared, run);
  run(tile_blocks(N), B * matrix.K * kTileRows, [=, &matrix](int64_t begin, int64_t end) {
    const auto [sums] = thread_buffers<Lanes>(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(matrix, block, prepared, B, sums);
      const int64_t n = block * kTileRows, rows = std::min<int64_t>(kTileRows, N - n);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < rows; ++i) y[b * N + n + i] = x[b * N + n + i] + sums[b][i];
    }
  });
}

}  // namespace rwkv::cpu

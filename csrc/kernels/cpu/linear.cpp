#include "kernels/cpu/linear.h"

#include <algorithm>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_product.h"

namespace rwkv::cpu {

int64_t Linear::scratch_bytes() const { return B * prepared_size(matrix); }

void linear(const Linear& linear, void* scratch, const Run& run) {
  const Matrix& matrix = linear.matrix;
  const int64_t B = linear.B, N = matrix.N;
  prepare_rows(matrix, linear.x, B, scratch, run);
  run(tile_blocks(N), B * matrix.K * kTileRows, [=, &linear, &matrix](int64_t begin, int64_t end) {
    const auto [sums] = thread_buffers<Lanes>(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(matrix, block, scratch, B, sums);
      const int64_t n = block * kTileRows, rows = std::min<int64_t>(kTileRows, N - n);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t r = 0; r < rows; ++r) linear.y[b * N + n + r] = sums[b][r];
    }
  });
}

}  // namespace rwkv::cpu

#include "kernels/cpu/linear.h"

#include <algorithm>
#include <vector>

#include "kernels/cpu/tile_product.h"

namespace rwkv::cpu {

template <class Weight>
void linear(const float* x, const Weight* tiles, int64_t B, int64_t N, int64_t K, float* y, const Run& run) {
  const int64_t per_block = tiles_per_block<Weight>(K), stride = per_block * kTileInputs<Weight>;
  run(tile_blocks(N), [=](int64_t begin, int64_t end) {
    std::vector<Lanes> sums(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(tile_block(tiles, block, K), per_block, x, stride, B, sums.data());
      const int64_t n = block * kTileRows, rows = std::min<int64_t>(kTileRows, N - n);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t r = 0; r < rows; ++r) y[b * N + n + r] = sums[b][r];
    }
  });
}

template void linear(const float*, const float*, int64_t, int64_t, int64_t, float*, const Run&);
template void linear(const float*, const Bfloat16*, int64_t, int64_t, int64_t, float*, const Run&);
template void linear(const float*, const Float16*, int64_t, int64_t, int64_t, float*, const Run&);

}  // namespace rwkv::cpu

#include "kernels/cpu/time_mixing_step.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "kernels/cpu/tile_product.h"
#include "kernels/wkv4_step.h"

namespace rwkv::cpu {
namespace {

// sigmoid(r) * wkv for 16 channels from a of one sequence, whose state is updated; k, v, r are their lanes.
template <class Weight>
RWKV_INLINE void gate_channels(const TimeMixingStep<Weight>& step, int64_t b, int64_t a, int lanes, const float* k,
                               const float* v, const float* r, float* __restrict gated) {
  const float *decay = step.decay + a, *first = step.first + a;
  const int64_t row = slot_of(step.slots, b) * step.wkv_stride + a;
  float* __restrict num = step.num + row, * __restrict den = step.den + row, * __restrict max = step.max + row;
#pragma omp simd
  for (int i = 0; i < lanes; ++i) {
    const Wkv4State<float> state{num[i], den[i], max[i]};
    gated[i] = sigmoid(r[i]) * wkv4_output(first[i], k[i], v[i], state);
    const auto next = wkv4_update(decay[i], k[i], v[i], state);
    num[i] = next.num, den[i] = next.den, max[i] = next.max;
  }
}

}  // namespace

template <class Weight>
void time_mixing_step(const TimeMixingStep<Weight>& step, float* scratch, const Run& run) {
  const auto [B, C, A] = std::tuple{step.B, step.C, step.A};
  const int64_t C_padded = step.whole_tiles(C), A_padded = step.whole_tiles(A);
  float* const now = scratch;
  float* const mixed_k = now + B * C;
  float* const mixed_v = mixed_k + B * C_padded;
  float* const mixed_r = mixed_v + B * C_padded;
  float* const gated = mixed_r + B * C_padded;

  for (int64_t b = 0; b < B; ++b) {
    float *row = now + b * C, *last = step.shift + slot_of(step.slots, b) * step.shift_stride;
    layer_norm(step.x + b * C, C, step.norm, row);
    token_shift(row, last, step.mix_k, C, C_padded, mixed_k + b * C_padded);
    token_shift(row, last, step.mix_v, C, C_padded, mixed_v + b * C_padded);
    token_shift(row, last, step.mix_r, C, C_padded, mixed_r + b * C_padded);
    std::copy_n(row, C, last);
    std::fill(gated + b * A_padded + A, gated + (b + 1) * A_padded, 0.0f);
  }

  run(tile_blocks(A), [=, &step](int64_t begin, int64_t end) {
    const int64_t tiles = tiles_per_block<Weight>(C);
    std::vector<Lanes> k(B), v(B), r(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(tile_block(step.key, block, C), tiles, mixed_k, C_padded, B, k.data());
      tile_product(tile_block(step.value, block, C), tiles, mixed_v, C_padded, B, v.data());
      tile_product(tile_block(step.receptance, block, C), tiles, mixed_r, C_padded, B, r.data());
      const int64_t a = block * kTileRows;
      const int lanes = static_cast<int>(std::min<int64_t>(kTileRows, A - a));
      for (int64_t b = 0; b < B; ++b) {
        float kb[kTileRows], vb[kTileRows], rb[kTileRows];
        store_lanes(kb, k[b]), store_lanes(vb, v[b]), store_lanes(rb, r[b]);
        gate_channels(step, b, a, lanes, kb, vb, rb, gated + b * A_padded + a);
      }
    }
  });

  run(tile_blocks(C), [=, &step](int64_t begin, int64_t end) {
    const int64_t tiles = tiles_per_block<Weight>(A);
    std::vector<Lanes> out(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(tile_block(step.output, block, A), tiles, gated, A_padded, B, out.data());
      const int64_t c = block * kTileRows, rows = std::min<int64_t>(kTileRows, C - c);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < rows; ++i) step.y[b * C + c + i] = step.x[b * C + c + i] + out[b][i];
    }
  });
}

template void time_mixing_step(const TimeMixingStep<float>&, float*, const Run&);
template void time_mixing_step(const TimeMixingStep<Bfloat16>&, float*, const Run&);
template void time_mixing_step(const TimeMixingStep<Float16>&, float*, const Run&);

}  // namespace rwkv::cpu

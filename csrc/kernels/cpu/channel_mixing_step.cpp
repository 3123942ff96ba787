#include "kernels/cpu/channel_mixing_step.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "kernels/cpu/tile_product.h"
#include "kernels/math.h"

namespace rwkv::cpu {
namespace {

// Columns of the value matrix are dealt out to threads in pieces of this many: whole cache lines of 16-bit weights.
constexpr int64_t kPiece = 64;
// Rows of the value matrix that share one reading of the sums.
constexpr int kRows = 4;

// The inputs that are not zero in every one of B rows of F.
std::vector<int64_t> active_inputs(const float* squared, int64_t B, int64_t F) {
  std::vector<int64_t> active;
  active.reserve(F);
  for (int64_t f = 0; f < F; ++f) {
    bool any = false;
    for (int64_t b = 0; b < B; ++b) any |= squared[b * F + f] != 0;
    if (any) active.push_back(f);
  }
  return active;
}

// sums[0..columns) += sum over `rows` inputs f of squared[f] value[f, 0..columns). One input after the other for each
// column: leaving an input of zero out changes no bit.
template <class Weight, int rows>
RWKV_INLINE void add_rows(const Weight* __restrict value, int64_t C, const int64_t* f, const float* squared,
                          int64_t columns, float* __restrict sums) {
  int64_t c = 0;
  for (; c + kTileRows <= columns; c += kTileRows) {
    Lanes sum = load_lanes(sums + c);
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) sum += widen_row(value + f[i] * C + c) * squared[f[i]];
    store_lanes(sums + c, sum);
  }
  if (c == columns) return;
  for (int i = 0; i < rows; ++i) {
    Weight tail[kTileRows] = {};
    std::copy_n(value + f[i] * C + c, columns - c, tail);
    const Lanes term = widen_row(tail) * squared[f[i]];
    for (int64_t j = c; j < columns; ++j) sums[j] += term[j - c];
  }
}

}  // namespace

template <class Weight>
void channel_mixing_step(const ChannelMixingStep<Weight>& step, float* scratch, const Run& run) {
  const auto [B, C, F] = std::tuple{step.B, step.C, step.F};
  const int64_t C_padded = step.whole_tiles(C);
  float* const now = scratch;
  float* const mixed_k = now + B * C;
  float* const mixed_r = mixed_k + B * C_padded;
  float* const squared = mixed_r + B * C_padded;
  float* const gate = squared + B * F;

  for (int64_t b = 0; b < B; ++b) {
    float *row = now + b * C, *last = step.shift + slot_of(step.slots, b) * step.shift_stride;
    layer_norm(step.x + b * C, C, step.norm, row);
    token_shift(row, last, step.mix_k, C, C_padded, mixed_k + b * C_padded);
    token_shift(row, last, step.mix_r, C, C_padded, mixed_r + b * C_padded);
    std::copy_n(row, C, last);
  }

  const int64_t key_blocks = tile_blocks(F), tiles = tiles_per_block<Weight>(C);
  run(key_blocks + tile_blocks(C), [=, &step](int64_t begin, int64_t end) {
    std::vector<Lanes> sums(B);
    for (int64_t unit = begin; unit < end; ++unit) {
      const bool is_key = unit < key_blocks;
      const int64_t block = is_key ? unit : unit - key_blocks, width = is_key ? F : C, n = block * kTileRows;
      tile_product(tile_block(is_key ? step.key : step.receptance, block, C), tiles, is_key ? mixed_k : mixed_r,
                   C_padded, B, sums.data());
      const int64_t rows = std::min<int64_t>(kTileRows, width - n);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < rows; ++i) {
          const float sum = sums[b][i], positive = sum < 0 ? 0 : sum;  // NaN stays
          (is_key ? squared : gate)[b * width + n + i] = is_key ? positive * positive : sigmoid(sum);
        }
    }
  });

  run((C + kPiece - 1) / kPiece, [=, &step](int64_t begin, int64_t end) {
    const int64_t from = begin * kPiece, columns = std::min(C, end * kPiece) - from;
    const std::vector<int64_t> active = active_inputs(squared, B, F);
    std::vector<float> sums(B * columns);
    size_t i = 0;
    for (; i + kRows <= active.size(); i += kRows)
      for (int64_t b = 0; b < B; ++b)
        add_rows<Weight, kRows>(step.value + from, C, &active[i], squared + b * F, columns, &sums[b * columns]);
    for (; i < active.size(); ++i)
      for (int64_t b = 0; b < B; ++b)
        add_rows<Weight, 1>(step.value + from, C, &active[i], squared + b * F, columns, &sums[b * columns]);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t at = b * C + from + c;
        step.y[at] = step.x[at] + gate[at] * sums[b * columns + c];
      }
  });
}

template void channel_mixing_step(const ChannelMixingStep<float>&, float*, const Run&);
template void channel_mixing_step(const ChannelMixingStep<Bfloat16>&, float*, const Run&);
template void channel_mixing_step(const ChannelMixingStep<Float16>&, float*, const Run&);

}  // namespace rwkv::cpu

#include "kernels/cpu/time_mixing4_step.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"
#include "kernels/wkv4_step.h"

namespace rwkv::cpu {
namespace {

struct Pieces {
  float *now, *gated;              // (B, C), (B, A)
  char *in_k, *in_v, *in_r, *out;  // prepared
  int64_t size;

  Pieces(const TimeMixing4Step& step, void* allocation) {
    Scratch scratch(allocation);
    now = scratch.take<float>(step.B * step.C), gated = scratch.take<float>(step.B * step.A);
    in_k = scratch.take<char>(step.B * prepared_size(step.key));
    in_v = scratch.take<char>(step.B * prepared_size(step.value));
    in_r = scratch.take<char>(step.B * prepared_size(step.receptance));
    out = scratch.take<char>(step.B * prepared_size(step.output));
    size = scratch.used();
  }
};

// sigmoid(r) * wkv for 16 channels of one sequence, beginning at channel a; updates the state. k, v and r have one lane
// per channel.
RWKV_INLINE void gate_channels(const TimeMixing4Step& step, int64_t b, int64_t a, int lanes, const float* k,
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

int64_t scratch_bytes(const TimeMixing4Step& step) { return Pieces(step, nullptr).size; }

void time_mixing4_step(const TimeMixing4Step& step, void* scratch, const Run& run) {
  const auto [B, C, A] = std::tuple{step.B, step.C, step.A};
  const Pieces at(step, scratch);
  const std::array<StepInput, 3> inputs{
      {{step.mix_k, step.key, at.in_k}, {step.mix_v, step.value, at.in_v}, {step.mix_r, step.receptance, at.in_r}}};
  prepare_step(step, inputs, at.now, run);

  run(tile_blocks(A), 3 * B * C * kTileRows, [=, &step](int64_t begin, int64_t end) {
    std::vector<Lanes> k(B), v(B), r(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(step.key, block, at.in_k, B, k.data());
      tile_product(step.value, block, at.in_v, B, v.data());
      tile_product(step.receptance, block, at.in_r, B, r.data());
      const int64_t a = block * kTileRows;
      const int lanes = static_cast<int>(std::min<int64_t>(kTileRows, A - a));
      for (int64_t b = 0; b < B; ++b) {
        float kb[kTileRows], vb[kTileRows], rb[kTileRows];
        store_lanes(kb, k[b]), store_lanes(vb, v[b]), store_lanes(rb, r[b]);
        gate_channels(step, b, a, lanes, kb, vb, rb, at.gated + b * A + a);
      }
    }
  });

  prepare_rows(step.output, at.gated, B, at.out, run);
  run(tile_blocks(C), B * A * kTileRows, [=, &step](int64_t begin, int64_t end) {
    std::vector<Lanes> out(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(step.output, block, at.out, B, out.data());
      const int64_t c = block * kTileRows, rows = std::min<int64_t>(kTileRows, C - c);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < rows; ++i) step.y[b * C + c + i] = step.x[b * C + c + i] + out[b][i];
    }
  });
}

}  // namespace rwkv::cpu

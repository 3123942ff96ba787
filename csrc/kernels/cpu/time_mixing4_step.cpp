#include "kernels/cpu/time_mixing4_step.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/residual_product.h"
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

// The states of 16 channels of many sequences are as many cache lines in as many places.
void prefetch_states(const TimeMixing4Step& step, int64_t a) {
  for (int64_t b = 0; b < step.B; ++b) {
    const int64_t from = origin_of(step.before, step.slots, b) * step.wkv_stride + a;
    __builtin_prefetch(step.num + from), __builtin_prefetch(step.den + from), __builtin_prefetch(step.max + from);
  }
}

// sigmoid(r) * wkv for up to 16 channels of one sequence, beginning at channel a; updates the state. k, v and r have
// one lane per channel. The arithmetic is on all lanes of local arrays, so that the compiler vectorises it.
void gate_channels(const TimeMixing4Step& step, int64_t b, int64_t a, int64_t lanes, const Lanes& k, const Lanes& v,
                   const Lanes& r, float* gated) {
  const int64_t from = origin_of(step.before, step.slots, b) * step.wkv_stride + a;
  const int64_t to = slot_of(step.slots, b) * step.wkv_stride + a;
  struct {
    float k[kTileRows], v[kTileRows], r[kTileRows], decay[kTileRows], first[kTileRows], num[kTileRows], den[kTileRows],
        max[kTileRows], gated[kTileRows];
  } at = {};
  store_lanes(at.k, k), store_lanes(at.v, v), store_lanes(at.r, r);
  copy_lanes(step.decay + a, lanes, at.decay), copy_lanes(step.first + a, lanes, at.first);
  copy_lanes(step.num + from, lanes, at.num), copy_lanes(step.den + from, lanes, at.den);
  copy_lanes(step.max + from, lanes, at.max);
  for (int i = 0; i < kTileRows; ++i) {
    const Wkv4State<float> state{at.num[i], at.den[i], at.max[i]};
    at.gated[i] = sigmoid(at.r[i]) * wkv4_output(at.first[i], at.k[i], at.v[i], state);
    const auto next = wkv4_update(at.decay[i], at.k[i], at.v[i], state);
    at.num[i] = next.num, at.den[i] = next.den, at.max[i] = next.max;
  }
  copy_lanes(at.num, lanes, step.num + to), copy_lanes(at.den, lanes, step.den + to);
  copy_lanes(at.max, lanes, step.max + to), copy_lanes(at.gated, lanes, gated);
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
    const int64_t blocks = end - begin;
    const auto [k, v, r] = thread_buffers<Lanes, Lanes, Lanes>(blocks * B, blocks * B, blocks * B);
    // One matrix after the other, because three streams of weights at a time are read more slowly than one.
    for (int64_t i = 0; i < blocks; ++i) tile_product(step.key, begin + i, at.in_k, B, &k[i * B]);
    for (int64_t i = 0; i < blocks; ++i) tile_product(step.value, begin + i, at.in_v, B, &v[i * B]);
    for (int64_t i = 0; i < blocks; ++i) {
      prefetch_states(step, (begin + i) * kTileRows);
      tile_product(step.receptance, begin + i, at.in_r, B, &r[i * B]);
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t a = (begin + i) * kTileRows;
      const int64_t lanes = std::min<int64_t>(kTileRows, A - a);
      for (int64_t b = 0; b < B; ++b)
        gate_channels(step, b, a, lanes, k[i * B + b], v[i * B + b], r[i * B + b], at.gated + b * A + a);
    }
  });

  residual_product(step.output, at.gated, B, at.out, step.x, step.y, run);
}

}  // namespace rwkv::cpu

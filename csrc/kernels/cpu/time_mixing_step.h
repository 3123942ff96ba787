// Time mixing of one token in each of B sequences, with its residual. Torch-free.
//
// Two passes over weights: k, v and r of 16 channels are computed by one worker, so that the recurrence and the gate
// happen in registers; then the output product.
#pragma once

#include "kernels/cpu/ln_shift.h"
#include "kernels/cpu/parallel.h"
#include "kernels/slots.h"

namespace rwkv::cpu {

// B sequences, C wide, A channels of the recurrence. Matrices are in tiles. The state's rows, C or A numbers, begin
// `shift_stride` and `wkv_stride` apart; those in `slots` are replaced.
template <class Weight>
struct TimeMixingStep {
  int64_t B, C, A;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_v, *mix_r;               // (C,)
  const float *decay, *first;                       // (A,)
  const Weight *key, *value, *receptance, *output;  // (A, C) thrice, (C, A)
  float *shift, *num, *den, *max;
  int64_t shift_stride, wkv_stride;
  const int64_t* slots;  // (B,) or null, see slot_of
  float* y;              // (B, C)

  int64_t scratch() const { return B * (C + 3 * whole_tiles(C) + whole_tiles(A)); }  // numbers needed beside
  static int64_t whole_tiles(int64_t inputs) { return tiles_per_block<Weight>(inputs) * kTileInputs<Weight>; }
};

template <class Weight>
void time_mixing_step(const TimeMixingStep<Weight>& step, float* scratch, const Run& run);

}  // namespace rwkv::cpu

// What the launchers of time_mixing4_step and channel_mixing4_step take on every device: one token in each of B
// sequences, C wide. Torch-free.
//
// Matrices are in tiles but where told. Rows of the state begin `shift_stride` and `wkv_stride` numbers apart; those in
// `slots` are replaced. y is not x.
#pragma once

#include "kernels/layer_norm.h"
#include "kernels/matrix.h"
#include "kernels/slots.h"

namespace rwkv {

// A channels of the recurrence.
struct TimeMixing4Step {
  int64_t B, C, A;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_v, *mix_r;     // (C,)
  const float *decay, *first;             // (A,)
  Matrix key, value, receptance, output;  // (A, C) thrice, (C, A)
  float *shift, *num, *den, *max;
  int64_t shift_stride, wkv_stride;
  const int64_t* slots;  // (B,) or null, see slot_of
  float* y;              // (B, C)
};

// F channels inside.
struct ChannelMixing4Step {
  int64_t B, C, F;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_r;  // (C,)
  Matrix key, receptance;      // (F, C), (C, C)
  Matrix value;                // (C, F), input-major: row f holds what input f adds to the C outputs
  float* shift;
  int64_t shift_stride;
  const int64_t* slots;  // (B,) or null, see slot_of
  float* y;              // (B, C)
};

}  // namespace rwkv

// Arguments of time_mixing4_step, channel_mixing4_step and blocks4_step on every device: one token in each of B
// sequences, width C. Torch-free.
//
// Matrices are in tiles unless stated otherwise. Rows of the state have the strides `shift_stride` and `wkv_stride`;
// those in `slots` are replaced. y must not be x.
//
// Rows take their turns in order: with `before`, a row may begin from the state that an earlier one has written, as the
// tokens of one sequence do. Only the CPU kernels can do this.
#pragma once

#include "kernels/layer_norm.h"
#include "kernels/matrix.h"
#include "kernels/slots.h"

namespace rwkv {

// A is the number of channels of the recurrence.
struct TimeMixing4Step {
  int64_t B, C, A;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_v, *mix_r;     // (C,)
  const float *decay, *first;             // (A,)
  Matrix key, value, receptance, output;  // (A, C) thrice, (C, A)
  float *shift, *num, *den, *max;
  int64_t shift_stride, wkv_stride;
  const int64_t* slots;             // (B,) or null, see slot_of
  float* y;                         // (B, C)
  const int64_t* before = nullptr;  // (B,) or null, see origin_of
};

// F is the width of the key.
struct ChannelMixing4Step {
  int64_t B, C, F;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_r;  // (C,)
  Matrix key, receptance;      // (F, C), (C, C); on CUDA (0, C) for no gate
  Matrix value;                // (C, F), input-major: row f has the weights of input f for the C outputs
  float* shift;
  int64_t shift_stride;
  const int64_t* slots;             // (B,) or null, see slot_of
  float* y;                         // (B, C)
  const int64_t* before = nullptr;  // (B,) or null, see origin_of
};

// Both halves of a layer; channel.x is time.y.
struct Block4Step {
  TimeMixing4Step time;
  ChannelMixing4Step channel;
};

}  // namespace rwkv

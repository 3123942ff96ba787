// Time mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/layer_norm.h"
#include "kernels/slots.h"
#include "kernels/tiles.h"

namespace rwkv::cuda {

// B sequences, C wide, A channels of the recurrence. Matrices are in tiles, which begin at multiples of 16 bytes. The
// state's rows, C or A numbers, begin `shift_stride` and `wkv_stride` apart; those in `slots` are replaced.
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
  float* y;              // (B, C), not x

  int64_t scratch() const { return B * (C + A); }  // numbers needed beside
};

template <class Weight>
cudaError_t time_mixing_step(const TimeMixingStep<Weight>& step, float* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

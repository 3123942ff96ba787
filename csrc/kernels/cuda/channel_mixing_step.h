// Channel mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/layer_norm.h"
#include "kernels/slots.h"
#include "kernels/tiles.h"

namespace rwkv::cuda {

// B sequences, C wide, F channels inside. Key and receptance are in tiles, which begin at multiples of 16 bytes. The
// state's rows begin `shift_stride` apart; those in `slots` are replaced.
template <class Weight>
struct ChannelMixingStep {
  int64_t B, C, F;
  const float* x;  // (B, C)
  LayerNorm norm;
  const float *mix_k, *mix_r;      // (C,)
  const Weight *key, *receptance;  // (F, C), (C, C)
  const Weight* value;             // (F, C), row f holds what input f adds to the C outputs
  float* shift;
  int64_t shift_stride;
  const int64_t* slots;  // (B,) or null, see slot_of
  float* y;              // (B, C), not x

  int64_t scratch() const;  // numbers needed beside, at a multiple of 16 bytes
};

template <class Weight>
cudaError_t channel_mixing_step(const ChannelMixingStep<Weight>& step, float* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

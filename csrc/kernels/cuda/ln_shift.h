// LayerNorm and token shift of whole sequences. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/layer_norm.h"

namespace rwkv::cuda {

struct LnShift {
  int64_t B, T, C, M;
  const float* x;  // (B, T, C)
  LayerNorm norm;
  const float *mixes, *shift;  // (M, C), (B, C)
  float *mixed, *last;         // (M, B, T, C), (B, C)
};

cudaError_t ln_shift(const LnShift& all, cudaStream_t stream);

}  // namespace rwkv::cuda

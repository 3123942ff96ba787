// Arguments of LayerNorm and token shift, for the kernels of every device. Torch-free.
#pragma once

#include <cstdint>

namespace rwkv {

struct LayerNorm {
  const float *weight, *bias;  // (C,)
  float eps;
};

// LayerNorm and token shift of T tokens of B sequences, with width C and M mixes.
struct LnShift {
  int64_t B, T, C, M;
  const float* x;  // (B, T, C)
  LayerNorm norm;
  const float *mixes, *shift;  // (M, C), (B, C)
  float *mixed, *last;         // (M, B, T, C), (B, C)
};

}  // namespace rwkv

// LayerNorm and token shift, as launchers of every device take them. Torch-free.
#pragma once

#include <cstdint>

namespace rwkv {

struct LayerNorm {
  const float *weight, *bias;  // (C,)
  float eps;
};

// Of T tokens of each of B sequences, C wide, in M mixes.
struct LnShift {
  int64_t B, T, C, M;
  const float* x;  // (B, T, C)
  LayerNorm norm;
  const float *mixes, *shift;  // (M, C), (B, C)
  float *mixed, *last;         // (M, B, T, C), (B, C)
};

}  // namespace rwkv

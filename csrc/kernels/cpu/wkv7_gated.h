// What follows RWKV-7's recurrence, for the tokens of prompts. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/layer_norm.h"

namespace rwkv::cpu {

struct Wkv7Gated {
  int64_t M, H, N;                // tokens, heads, channels of a head
  const float *r, *k, *v, *gate;  // (M, H, N)
  const float* r_k;               // (H, N)
  LayerNorm norm;                 // (H, N)
  const float* y;                 // (M, H, N), the output of the recurrence
  float* out;                     // (M, H, N)
};

void wkv7_gated(const Wkv7Gated& op, const Run& run);

}  // namespace rwkv::cpu

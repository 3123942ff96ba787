// The RWKV-7 recurrence over T tokens. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

struct Wkv7Size {
  int64_t B, T, H, N;  // sequences, tokens, heads, channels of a head
};

// In order (B, T, H, N); the state (B, H, N, N), whose rows are values and whose columns are keys.
template <class Real>
struct Wkv7Inputs {
  const Real *r, *w, *k, *v, *kappa, *a, *state;
};

template <class Real>
struct Wkv7Outputs {
  Real *y, *state;
};

template <class Real>
void wkv7(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, const Run& run);

}  // namespace rwkv::cpu

// Arguments of wkv7 and wkv7_backward on every device. Torch-free.
//
// Shapes: (B, T, H, N); the state (B, H, N, N), whose rows are values and whose columns are keys. All contiguous; Real
// is float or double.
#pragma once

#include <cstdint>

namespace rwkv {

struct Wkv7Size {
  int64_t B, T, H, N;  // sequences, tokens, heads, channels of a head
};

template <class Real>
struct Wkv7Inputs {
  const Real *r, *w, *k, *v, *kappa, *a, *state;
};

template <class Real>
struct Wkv7Outputs {
  Real *y, *state;
};

template <class Real>
struct Wkv7OutputGrads {
  const Real *y, *state;
};

template <class Real>
struct Wkv7InputGrads {
  Real *r, *w, *k, *v, *kappa, *a, *state;
};

}  // namespace rwkv

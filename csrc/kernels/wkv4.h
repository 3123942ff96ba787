// Arguments of wkv4 and wkv4_backward on every device. Torch-free.
//
// Shapes: k, v, y (B, T, C); num, den, max (B, C); decay, first (C). All contiguous; Real is float or double.
#pragma once

#include <cstdint>

namespace rwkv {

struct Wkv4Size {
  int64_t B, T, C;
};

template <class Real>
struct Wkv4Inputs {
  const Real *decay, *first, *k, *v, *num, *den, *max;
};

template <class Real>
struct Wkv4Outputs {
  Real *y, *num, *den, *max;
};

template <class Real>
struct Wkv4OutputGrads {
  const Real *y, *num, *den, *max;
};

template <class Real>
struct Wkv4InputGrads {
  Real *decay, *first, *k, *v, *num, *den, *max;
};

}  // namespace rwkv

// The RWKV-4 recurrence over T steps, forward and backward. Torch-free.
//
// Shapes: k, v, y (B, T, C); num, den, max (B, C); decay, first (C). All contiguous; Real is float or double.
#pragma once

#include <cstdint>

#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

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

template <class Real>
void wkv4(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4Outputs<Real> out, const Run& run);

template <class Real>
void wkv4_backward(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4InputGrads<Real> out,
                   const Run& run);

}  // namespace rwkv::cpu

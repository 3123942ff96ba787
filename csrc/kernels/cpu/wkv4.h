// The RWKV-4 recurrence over T steps, forward and backward. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/wkv4.h"

namespace rwkv::cpu {

template <class Real>
void wkv4(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4Outputs<Real> out, const Run& run);

template <class Real>
void wkv4_backward(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4InputGrads<Real> out,
                   const Run& run);

}  // namespace rwkv::cpu

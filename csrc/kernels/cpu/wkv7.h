// The RWKV-7 recurrence over T tokens. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/wkv7.h"

namespace rwkv::cpu {

template <class Real>
void wkv7(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, const Run& run);

}  // namespace rwkv::cpu

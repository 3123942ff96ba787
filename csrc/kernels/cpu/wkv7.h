// The RWKV-7 recurrence over T tokens. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/wkv7.h"

namespace rwkv::cpu {

// One token in rows [first, last) of one head's state (N, N): replaces them, and writes their outputs to y (N,).
template <class Real>
void wkv7_rows(const Wkv7Inputs<Real>& token, int64_t first, int64_t last, int64_t N, Real* state, Real* y);

template <class Real>
void wkv7(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, const Run& run);

}  // namespace rwkv::cpu

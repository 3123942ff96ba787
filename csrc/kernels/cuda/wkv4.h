// The RWKV-4 recurrence over T steps, forward and backward, as a scan over chunks of tokens. Torch-free.
//
// The same call always gives the same bits, and those of a row do not depend on B. Fewer than kWkv4Chunk tokens are
// processed sequentially, so dividing them among several calls does not change the bits; for longer texts this holds if
// they are divided at multiples of kWkv4Chunk tokens.
#pragma once

#include <cuda_runtime.h>

#include "kernels/wkv4.h"

namespace rwkv::cuda {

constexpr int kWkv4Chunk = 32;

// The size of `scratch`, in elements of type Real.
int64_t wkv4_scratch_numbers(Wkv4Size size);
int64_t wkv4_backward_scratch_numbers(Wkv4Size size);

// No output may overlap an input.
template <class Real>
cudaError_t wkv4(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4Outputs<Real> out, Real* scratch, cudaStream_t stream);

template <class Real>
cudaError_t wkv4_backward(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4InputGrads<Real> out,
                          Real* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

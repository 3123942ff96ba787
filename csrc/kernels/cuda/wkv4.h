// The RWKV-4 recurrence over T steps, forward and backward, as a scan over chunks of tokens. Torch-free.
//
// Bits: the same call gives the same bits, and a row's do not depend on B. Fewer than kWkv4Chunk tokens are taken one
// after another, so there it does not matter where one call ends and the next begins; longer texts give the same bits
// cut at any multiple of kWkv4Chunk tokens.
#pragma once

#include <cuda_runtime.h>

#include "kernels/wkv4.h"

namespace rwkv::cuda {

constexpr int kWkv4Chunk = 32;

// How many Reals `scratch` must hold.
int64_t wkv4_scratch_numbers(Wkv4Size size);
int64_t wkv4_backward_scratch_numbers(Wkv4Size size);

// No output may overlap an input. B is at most 65535.
template <class Real>
cudaError_t wkv4(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4Outputs<Real> out, Real* scratch, cudaStream_t stream);

template <class Real>
cudaError_t wkv4_backward(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4InputGrads<Real> out,
                          Real* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

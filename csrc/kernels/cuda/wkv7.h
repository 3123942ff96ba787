// The RWKV-7 recurrence over T tokens, forward and backward. Torch-free.
//
// The same call always gives the same bits, and those of a sequence depend neither on B nor on how its tokens are
// divided among several calls of wkv7.
#pragma once

#include <cuda_runtime.h>

#include "kernels/wkv7.h"

namespace rwkv::cuda {

constexpr int64_t kWkv7MostChannels = 128;  // N is at most this; otherwise the error is cudaErrorInvalidValue

// No output may overlap an input.
template <class Real>
cudaError_t wkv7(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, cudaStream_t stream);

// The size of `scratch`, in elements of type Real: about 2 sqrt(T) states of each head.
int64_t wkv7_backward_scratch_numbers(Wkv7Size size);

template <class Real>
cudaError_t wkv7_backward(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7OutputGrads<Real> grad, Wkv7InputGrads<Real> out,
                          Real* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

// Time mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/mixing_steps.h"

namespace rwkv::cuda {

int64_t scratch(const TimeMixingStep& step);  // numbers needed beside, at a multiple of 4 bytes

// The matrices are of one format; tiles begin at multiples of 16 bytes.
cudaError_t time_mixing_step(const TimeMixingStep& step, float* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

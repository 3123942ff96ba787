// y = x W^T for few rows x, with W in tiles. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/matrix.h"

namespace rwkv::cuda {

// x (B, K) -> y (B, N). Tiles begin at a multiple of 16 bytes. For more than 16 rows, weights are read several times.
cudaError_t linear(const float* x, const Matrix& matrix, int64_t B, float* y, cudaStream_t stream);

}  // namespace rwkv::cuda

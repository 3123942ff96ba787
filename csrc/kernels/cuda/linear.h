// y = x W^T for a few rows x, W in tiles. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tiles.h"

namespace rwkv::cuda {

// x (B, K) -> y (B, N). Tiles begin at a multiple of 16 bytes. More than 16 rows read the weights more than once.
template <class Weight>
cudaError_t linear(const float* x, const Weight* tiles, int64_t B, int64_t N, int64_t K, float* y, cudaStream_t stream);

}  // namespace rwkv::cuda

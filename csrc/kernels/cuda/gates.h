// The element-wise activations. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace rwkv::cuda {

// k becomes relu(k)^2, n numbers; keeps NaN.
cudaError_t squared_relu(float* k, int64_t n, cudaStream_t stream);

// out = x + sigmoid(r) y of n numbers, or sigmoid(r) y if x is null.
cudaError_t gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out, cudaStream_t stream);

}  // namespace rwkv::cuda

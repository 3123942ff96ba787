// The activations that are no products, number by number. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace rwkv::cuda {

// y = relu(k)^2 of n numbers; NaN stays.
cudaError_t squared_relu(const float* k, int64_t n, float* y, cudaStream_t stream);

// out = x + sigmoid(r) y of n numbers; without x the gate alone.
cudaError_t gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out, cudaStream_t stream);

}  // namespace rwkv::cuda

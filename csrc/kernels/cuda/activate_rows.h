// What prefill does between its products in 16 bits, a row at a time. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/tiles.h"

namespace rwkv::cuda {

// rows[m] = activated / powers[m], rounded to Number, where activated = sigmoid(gate) x, or relu(x)^2 if gate is null.
// x and gate are (M, K), powers (M,): powers of two for which the largest of a row is below 1, see scale_rows.h. Number
// is Bfloat16 or Float16.
template <class Number>
cudaError_t activate_rows(const float* x, const float* gate, int64_t M, int64_t K, Number* rows, float* powers,
                          cudaStream_t stream);

// out = x + powers[m] y, or x + sigmoid(gate) powers[m] y if gate is not null; all but powers are (M, K).
cudaError_t residual_rows(const float* x, const float* gate, const float* y, const float* powers, int64_t M, int64_t K,
                          float* out, cudaStream_t stream);

}  // namespace rwkv::cuda

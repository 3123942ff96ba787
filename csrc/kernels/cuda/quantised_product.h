// Products of quantised matrices with more rows than a step of decoding has, on tensor cores. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/matrix.h"

namespace rwkv::cuda {

// y[m, n] = powers[m] rows[n] sum over k of W[n, k] x[m, k] for M rows x of K float16, where rows[n] is 1 for int4
// weights. W is int8 or int4, in tiles and without the scales of its columns; it is rounded to float16, and sums are
// float32. K is a multiple of 8, and x begins at a multiple of 16 bytes.
cudaError_t quantised_product(const Float16* x, const float* powers, const Matrix& matrix, int64_t M, float* y,
                              cudaStream_t stream);

}  // namespace rwkv::cuda

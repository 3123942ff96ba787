// Rounds rows of activations to float16, whatever their size. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace rwkv::cuda {

// Row m of x (M, K), times `columns` (K,) unless that is null, is 2^e times numbers below 1; a power of two loses
// nothing. Writes these as float16 (M, K), and powers[m] = 2^e.
cudaError_t scale_rows(const float* x, const float* columns, int64_t M, int64_t K, uint16_t* halves, float* powers,
                       cudaStream_t stream);

}  // namespace rwkv::cuda

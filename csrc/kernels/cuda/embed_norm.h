// The normalised embeddings of tokens. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/layer_norm.h"

namespace rwkv::cuda {

// out[b] = LayerNorm(table[tokens[b]]) for B tokens of width C. Number is float, Bfloat16 or Float16.
template <class Number>
cudaError_t embed_norm(const int64_t* tokens, int64_t B, const Number* table, int64_t C, const LayerNorm& norm,
                       float* out, cudaStream_t stream);

}  // namespace rwkv::cuda

// What a decoding step begins with: the normalised embeddings of its tokens, and counting them. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/layer_norm.h"

namespace rwkv::cuda {

// The numbers of tokens of some sequences: adds 1 to positions[slots[b]], and copies the sum to after[b]. A slot that
// occurs several times gets one more than before or later, as padding rows allow. Null pointers: nothing is counted.
struct Counted {
  int64_t* positions;
  const int64_t* slots;
  int64_t* after;
};

// out[b] = LayerNorm(table[tokens[b]]) for B tokens of width C, or LayerNorm(table[b]) if `tokens` is null. Number is
// float, Bfloat16 or Float16.
template <class Number>
cudaError_t embed_norm(const int64_t* tokens, int64_t B, const Number* table, int64_t C, const LayerNorm& norm,
                       const Counted& counted, float* out, cudaStream_t stream);

}  // namespace rwkv::cuda

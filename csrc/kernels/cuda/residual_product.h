// The last kernel of time mixing: the output product, added to the residual stream, and the new shift row, which
// earlier kernels must not replace while their blocks read the old one. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/matrix.h"

namespace rwkv::cuda {

// y = x + W inputs, and the state's row of b becomes now[b].
struct ResidualProduct {
  int64_t B;
  Matrix matrix;            // (N, K), in tiles
  const float *x, *inputs;  // (B, N), (B, K)
  float* y;                 // (B, N)
  const float* now;         // (B, N)
  float* shift;
  int64_t shift_stride;
  const int64_t* slots;  // (B,) or null, see slot_of
};

cudaError_t residual_product(const ResidualProduct& of, cudaStream_t stream);

}  // namespace rwkv::cuda

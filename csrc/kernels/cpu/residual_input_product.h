// The last part of channel mixing: the product with rows of W^T, gated and added to the residual stream. Torch-free.
#pragma once

#include <cstdint>

#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// y = x + gate (a W^T) for B rows: a (B, K), of which most may be zero; gate (B, N), or null for no gate; x and y (B,
// N).
struct ResidualInputProduct {
  const Matrix& matrix;
  const float* a;
  int64_t B;
  const float *gate, *x;
  float* y;

  int64_t scratch_bytes() const;
};

void residual_input_product(const ResidualInputProduct& product, void* scratch, const Run& run);

}  // namespace rwkv::cpu

// y = x W^T for many rows x. Torch-free.
//
// Every sum adds the inputs in the same order whatever the number of rows, so the result of a row depends only on that
// row.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

struct LinearMany {
  int64_t M;
  const float* x;  // (M, K)
  Matrix matrix;
  bool in_tiles;  // otherwise W^T (K, N) row-major
  float* y;       // (M, N)

  int64_t scratch_bytes() const;  // for `scratch`, at a multiple of 64 bytes
};

void linear_many(const LinearMany& linear, void* scratch, const Run& run);

}  // namespace rwkv::cpu

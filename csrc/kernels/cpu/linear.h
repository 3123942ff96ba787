// y = x W^T for few rows x, with W in tiles. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

struct Linear {
  int64_t B;
  const float* x;  // (B, K)
  Matrix matrix;
  float* y;  // (B, N)

  int64_t scratch_bytes() const;  // for `scratch`, at a multiple of 64 bytes
};

void linear(const Linear& linear, void* scratch, const Run& run);

}  // namespace rwkv::cpu

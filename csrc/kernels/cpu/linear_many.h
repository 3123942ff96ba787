// y = x W^T for many rows x. Torch-free.
//
// Each sum runs over the inputs in the same order whatever the number of rows, so a row's bits depend on nothing but
// the row.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/tiles.h"

namespace rwkv::cpu {

// x (M, K), y (M, N), both contiguous.
template <class Weight>
struct LinearMany {
  int64_t M, N, K;
  const float* x;
  const Weight* weight;
  bool in_tiles;  // or W^T row after row, (K, N)
  float* y;

  int64_t scratch() const;  // bytes needed beside, 64-byte aligned
};

template <class Weight>
void linear_many(const LinearMany<Weight>& linear, void* scratch, const Run& run);

}  // namespace rwkv::cpu

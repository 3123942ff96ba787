// y = x W^T for a few rows x, W in tiles. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/tiles.h"

namespace rwkv::cpu {

// x (B, whole tiles of K inputs, zeros behind K) -> y (B, N).
template <class Weight>
void linear(const float* x, const Weight* tiles, int64_t B, int64_t N, int64_t K, float* y, const Run& run);

}  // namespace rwkv::cpu

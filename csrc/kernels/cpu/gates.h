// The element-wise activations. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

// k becomes relu(k)^2; keeps NaN.
void squared_relu(float* k, int64_t n, const Run& run);

// out = x + sigmoid(r) y, or sigmoid(r) y if x is null.
void gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out, const Run& run);

}  // namespace rwkv::cpu

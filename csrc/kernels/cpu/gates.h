// The activations that are no products, number by number. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

// y = relu(k)^2; NaN stays.
void squared_relu(const float* k, int64_t n, float* y, const Run& run);

// out = x + sigmoid(r) y, without x the gate alone.
void gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out, const Run& run);

}  // namespace rwkv::cpu

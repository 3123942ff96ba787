#include "kernels/cpu/gates.h"

#include "kernels/math.h"

namespace rwkv::cpu {

void squared_relu(float* k, int64_t n, const Run& run) {
  run(n, 8, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float positive = k[i] < 0 ? 0 : k[i];
      k[i] = positive * positive;
    }
  });
}

void gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out, const Run& run) {
  run(n, 16, [=](int64_t begin, int64_t end) {
    if (x) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) out[i] = x[i] + sigmoid(r[i]) * y[i];
    } else {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) out[i] = sigmoid(r[i]) * y[i];
    }
  });
}

}  // namespace rwkv::cpu

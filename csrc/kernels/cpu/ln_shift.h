// LayerNorm and token shift of one row. Torch-free.
#pragma once

#include <cmath>

#include "kernels/cpu/lanes.h"

namespace rwkv::cpu {

struct LayerNorm {
  const float *weight, *bias;  // (C,)
  float eps;
};

// out = (x - mean) / sqrt(variance + eps) * weight + bias, the sums in double: a row is short, and exactness is cheap.
inline void layer_norm(const float* x, int64_t C, LayerNorm norm, float* out) {
  double sum = 0, squares = 0;
  for (int64_t c = 0; c < C; ++c) sum += x[c];
  const double mean = sum / C;
  for (int64_t c = 0; c < C; ++c) squares += (x[c] - mean) * (x[c] - mean);
  const float scale = static_cast<float>(1 / std::sqrt(squares / C + norm.eps));
  const float centre = static_cast<float>(mean);
  for (int64_t c = 0; c < C; ++c) out[c] = (x[c] - centre) * scale * norm.weight[c] + norm.bias[c];
}

// mixed = now mix + last (1 - mix), zeros from C to `padded`.
inline void token_shift(const float* now, const float* last, const float* mix, int64_t C, int64_t padded,
                        float* mixed) {
  for (int64_t c = 0; c < C; ++c) mixed[c] = last[c] + (now[c] - last[c]) * mix[c];
  for (int64_t c = C; c < padded; ++c) mixed[c] = 0;
}

}  // namespace rwkv::cpu

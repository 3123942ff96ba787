// LayerNorm and token shift. Torch-free.
#pragma once

#include <cmath>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/parallel.h"
#include "kernels/layer_norm.h"

namespace rwkv::cpu {

// The sum over c of term(c) in double, with eight partial sums, so that the loop is vectorised.
template <class Term>
RWKV_INLINE double sum_over(int64_t C, const Term& term) {
  constexpr int kPartial = 8;
  double partial[kPartial] = {};
  int64_t c = 0;
  for (; c + kPartial <= C; c += kPartial)
    for (int i = 0; i < kPartial; ++i) partial[i] += term(c + i);
  for (; c < C; ++c) partial[0] += term(c);
  return ((partial[0] + partial[1]) + (partial[2] + partial[3])) +
         ((partial[4] + partial[5]) + (partial[6] + partial[7]));
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias. The sums are in double, which costs little for a short row.
inline void layer_norm(const float* x, int64_t C, LayerNorm norm, float* out) {
  const double mean = sum_over(C, [=](int64_t c) { return static_cast<double>(x[c]); }) / C;
  const double squares = sum_over(C, [=](int64_t c) { return (x[c] - mean) * (x[c] - mean); });
  const float scale = static_cast<float>(1 / std::sqrt(squares / C + norm.eps));
  const float centre = static_cast<float>(mean);
  for (int64_t c = 0; c < C; ++c) out[c] = (x[c] - centre) * scale * norm.weight[c] + norm.bias[c];
}

// mixed = now mix + last (1 - mix)
inline void token_shift(const float* now, const float* last, const float* mix, int64_t C, float* mixed) {
  for (int64_t c = 0; c < C; ++c) mixed[c] = last[c] + (now[c] - last[c]) * mix[c];
}

// LayerNorm and token shift of T tokens: x (B, T, C), mixes (M, C), shift (B, C) -> mixed (M, B, T, C), last (B, C).
void ln_shift(const LnShift& op, const Run& run);

}  // namespace rwkv::cpu

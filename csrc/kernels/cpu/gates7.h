// RWKV-7's element-wise equations around the recurrence. The fused step and prompts call the same functions, so that
// they have the same bits. Torch-free.
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/layer_norm.h"
#include "kernels/mixing7_steps.h"

namespace rwkv::cpu {

// The parameters of what the recurrence takes besides the receptance, and of the gate.
struct Gates7 {
  int64_t C, A;
  const float *w0, *a0, *v0, *k_k, *k_a;  // (A,)
  LowRank w, a, g, v;                     // the rank of v is 0 in layer 0, which mixes no values

  bool mixes_values() const { return v.first.N > 0; }
};

enum class Activation { none, tanh, sigmoid };

// A low-rank product: the mix that is its input, and the activation between its factors.
struct LowRankOf {
  const LowRank& factors;
  Mix7 mix;
  Activation activation;
};
constexpr int kLowRanks = 4;

// Those of w, a, g and v.
struct LowRanks7 {
  LowRankOf of[kLowRanks];

  explicit LowRanks7(const Gates7& gates)
      : of{{gates.w, Mix7::w, Activation::tanh},
           {gates.a, Mix7::a, Activation::none},
           {gates.g, Mix7::g, Activation::sigmoid},
           {gates.v, Mix7::v, Activation::none}} {}
};

// Prepares row b of B, the activation of `hidden` (rank,), as the input of a second factor; x is memory for it.
void prepare_activated(const Matrix& second, Activation activation, const float* hidden, int64_t b, int64_t B, float* x,
                       void* prepared);

// The second factors of all low-rank products for B rows and blocks of 16 channels: sums (4, blocks, B), zero without a
// rank. One factor after the other, because four streams of weights at a time are read more slowly than one.
void second_products(const LowRanks7& products, char* const* prepared, int64_t first, int64_t blocks, int64_t B,
                     Lanes* sums);

// (B, A) each: the products k and v, which may be the same as those that the recurrence takes.
struct Rows7 {
  const float *key, *value;
  float *w, *k, *v, *kappa, *a, *gate;
  float* first;  // the values of layer 0, which writes them
};

// What the low-rank products are for, in up to 16 channels of row b, beginning at channel n: the decay, the rate a, the
// gate, and the mix of the values with those of layer 0; then the keys, of which kappa is not normalised yet.
void combine(const Gates7& gates, const Rows7& rows, int64_t b, int64_t n, const Lanes low[kLowRanks]);

// kappa / |kappa| for the N channels of a head.
void normalise(float* kappa, int64_t N);

// What follows the recurrence for the N channels of a head: GroupNorm of y, the bonus, and the gate. All are those of
// the head; the result replaces y.
void gate_head(const float* r, const float* k, const float* v, const float* r_k, LayerNorm norm, const float* gate,
               int64_t N, float* y);

}  // namespace rwkv::cpu

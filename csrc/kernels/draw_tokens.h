// Arguments of draw_tokens on every device, and its weights as integers. Torch-free; host and device.
#pragma once

#include "kernels/math.h"
#include "kernels/philox.h"

namespace rwkv {

// A mask for V tokens: bit i % 32 of word i / 32 is that of token i.
constexpr int64_t kMaskBits = 32;
RWKV_HOST_DEVICE constexpr int64_t mask_words(int64_t V) { return (V + kMaskBits - 1) / kMaskBits; }

// Whether a mask allows token i; null allows all.
RWKV_HOST_DEVICE inline bool allows(const int32_t* mask, int64_t i) {
  return !mask || (mask[i / kMaskBits] >> i % kMaskBits & 1);
}

constexpr int64_t kNoneAllowed = -2;  // in place of an id

// Samples a token for each of B texts from the logits of a vocabulary of V, among those that are allowed. Temperature,
// top-k, top-p and min-p apply in this order, then the inverse of the cumulative distribution at `draws`, or at the
// random numbers of seeds, samples and positions where `draws` is null, as the reference in
// rwkv_engine/ops/draw_tokens.py says. Logit is float, whose rows must be finite, or double, where -inf bans a token. A
// row that is not so gets -1, and one of which no token is allowed kNoneAllowed.
template <class Logit>
struct DrawTokens {
  int64_t B, V;
  const Logit* logits;                                                       // (B, V)
  const double *temperatures, *top_p, *min_p, *draws;                        // (B,) each
  const int64_t* top_k;                                                      // (B,)
  int64_t* ids;                                                              // (B,)
  const int64_t *seeds = nullptr, *samples = nullptr, *positions = nullptr;  // (B,) each, without draws
  const int32_t* allowed = nullptr;  // (B, mask_words(V)), or null, which allows all tokens

  // The mask of row b, or null.
  RWKV_HOST_DEVICE const int32_t* mask(int64_t b) const { return allowed ? allowed + b * mask_words(V) : nullptr; }
  // The random number of row b.
  RWKV_HOST_DEVICE double fraction(int64_t b) const {
    return draws ? draws[b] : philox_number(seeds[b], samples[b], positions[b]);
  }
};

// Probabilities relative to the largest become integers, for their sums are exact, and do not depend on the order of
// additions; smaller ones than 2^-46 become 0.
constexpr double kWhole = 0x1p45, kLeast = 0x1p-46;

// By this the differences of logits are multiplied; a division for each would take longer than the exponential. It is
// finite for every temperature above 0, because the largest logit's difference is 0.
RWKV_HOST_DEVICE inline double reciprocal(double temperature) {
  constexpr double kMost = 0x1.fffffffffffffp1023;
  const double scale = 1 / temperature;
  return scale < kMost ? scale : kMost;
}

RWKV_HOST_DEVICE inline int64_t bits_of(double x) {
  int64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Rounds to nearest, ties to even; the sum is in [2^52, 2^53), where neighbouring numbers differ by 1.
RWKV_HOST_DEVICE inline int64_t whole_number(double weight) {
  constexpr double kRound = 0x1.8p52;
  return bits_of(weight * kWhole + kRound) - bits_of(kRound);
}

// The place of a token in the order of descending weights, and ascending ids among equals.
struct Place {
  double weight;
  int64_t id;

  // Whether a token comes no later.
  RWKV_HOST_DEVICE bool includes(double of_token, int64_t token) const {
    return (of_token > weight) | ((of_token == weight) & (token <= id));
  }
};

}  // namespace rwkv

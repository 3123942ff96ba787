// Samples a token for each of B texts from the logits of a vocabulary of V. Torch-free.
#pragma once

#include <cstdint>

#include "kernels/cpu/parallel.h"

namespace rwkv::cpu {

// Temperature, top-k, top-p and min-p apply in this order, then the inverse of the cumulative distribution at `draws`,
// as the reference in rwkv_engine/ops/draw_tokens.py says. Logit is float, whose rows must be finite, or double, where
// -inf bans a token. A row that is not so gets -1.
template <class Logit>
struct DrawTokens {
  int64_t B, V;
  const Logit* logits;                                 // (B, V)
  const double *temperatures, *top_p, *min_p, *draws;  // (B,) each
  const int64_t* top_k;                                // (B,)
  int64_t* ids;                                        // (B,)
};

template <class Logit>
void draw_tokens(const DrawTokens<Logit>& draw, const Run& run);

}  // namespace rwkv::cpu

// Samples a token for each of B texts, kernels/draw_tokens.h. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/draw_tokens.h"

namespace rwkv::cpu {

template <class Logit>
void draw_tokens(const DrawTokens<Logit>& draw, const Run& run);

}  // namespace rwkv::cpu

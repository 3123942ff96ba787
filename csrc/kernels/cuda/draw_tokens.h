// Samples a token for each of B texts, kernels/draw_tokens.h. Torch-free.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/draw_tokens.h"

namespace rwkv::cuda {

// The size of `scratch`, in float64 numbers.
int64_t draw_scratch_numbers(int64_t B, int64_t V);

// Two kernels, whatever the parameters. `draw.ids` may not be read while they run.
template <class Logit>
cudaError_t draw_tokens(const DrawTokens<Logit>& draw, double* scratch, cudaStream_t stream);

// The most likely token of each of B rows of V logits, the first among equals, or -1 as in draw_tokens; one kernel.
template <class Logit>
cudaError_t most_likely(const Logit* logits, int64_t B, int64_t V, int64_t* ids, cudaStream_t stream);

}  // namespace rwkv::cuda

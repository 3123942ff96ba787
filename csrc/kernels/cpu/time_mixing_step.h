// Time mixing of one token in each of B sequences, with its residual. Torch-free.
//
// Two passes over weights: k, v and r of 16 channels are computed by one worker, so that the recurrence and the gate
// happen in registers; then the output product.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/mixing_steps.h"

namespace rwkv::cpu {

int64_t scratch(const TimeMixingStep& step);  // bytes needed beside

void time_mixing_step(const TimeMixingStep& step, void* scratch, const Run& run);

}  // namespace rwkv::cpu

// Time mixing of one token in each of B sequences, with its residual. Torch-free.
//
// There are two passes over weights. In the first, one thread computes k, v and r of 16 channels, so that the
// recurrence and the gate stay in registers; the second is the output product.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/mixing4_steps.h"

namespace rwkv::cpu {

int64_t scratch_bytes(const TimeMixing4Step& step);  // for `scratch`, at a multiple of 64 bytes

void time_mixing4_step(const TimeMixing4Step& step, void* scratch, const Run& run);

}  // namespace rwkv::cpu

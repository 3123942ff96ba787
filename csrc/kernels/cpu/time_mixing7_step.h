// RWKV-7's time mixing of one token in each of B sequences, with its residual. Torch-free.
//
// There are three passes over weights: all products of the token's mixes, the second factors of the low-rank products
// with the element-wise equations, and the output product. The recurrence of a head lies between the last two.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/mixing7_steps.h"

namespace rwkv::cpu {

int64_t scratch_bytes(const TimeMixing7Step& step);  // for `scratch`, at a multiple of 64 bytes

void time_mixing7_step(const TimeMixing7Step& step, void* scratch, const Run& run);

}  // namespace rwkv::cpu

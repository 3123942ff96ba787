// Channel mixing of one token in each of B sequences, with its residual. Torch-free.
//
// There are two passes over weights: key and receptance, then the value product. The latter reads the value matrix
// input by input, and skips inputs for which relu(k)^2 is zero in all sequences, nearly 90 % of them in trained models.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/mixing4_steps.h"

namespace rwkv::cpu {

int64_t scratch_bytes(const ChannelMixing4Step& step);  // for `scratch`, at a multiple of 64 bytes

void channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, const Run& run);

}  // namespace rwkv::cpu

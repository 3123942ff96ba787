// RWKV-7's channel mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/mixing7_steps.h"

namespace rwkv::cpu {

int64_t scratch_bytes(const ChannelMixing7Step& step);  // for `scratch`, at a multiple of 64 bytes

void channel_mixing7_step(const ChannelMixing7Step& step, void* scratch, const Run& run);

}  // namespace rwkv::cpu

// RWKV-7's channel mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/mixing7_steps.h"

namespace rwkv::cuda {

int64_t scratch_bytes(const ChannelMixing7Step& step);  // for `scratch`, at a multiple of 16 bytes

// As channel_mixing4_step, whose kernels it runs.
cudaError_t channel_mixing7_step(const ChannelMixing7Step& step, void* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

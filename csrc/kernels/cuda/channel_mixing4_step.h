// Channel mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/mixing4_steps.h"

namespace rwkv::cuda {

int64_t scratch_bytes(const ChannelMixing4Step& step);  // for `scratch`, at a multiple of 16 bytes

// The matrices may differ in their formats; tiles, and int4 rows of the value matrix, begin at multiples of 16
// bytes.
cudaError_t channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

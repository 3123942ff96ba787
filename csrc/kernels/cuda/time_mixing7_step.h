// RWKV-7's time mixing of one token in each of B sequences, with its residual. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/mixing7_steps.h"

namespace rwkv::cuda {

constexpr int64_t kMostHeadChannels = 256;  // N, because a row of a head's state must fit into a warp's registers

int64_t scratch_bytes(const TimeMixing7Step& step);  // for `scratch`, at a multiple of 16 bytes

// The matrices may differ in their formats, but the second low-rank factors all have the same format, of floats; tiles
// begin at multiples of 16 bytes. There is no `before`.
cudaError_t time_mixing7_step(const TimeMixing7Step& step, void* scratch, cudaStream_t stream);

}  // namespace rwkv::cuda

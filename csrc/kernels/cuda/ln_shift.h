// LayerNorm and token shift of whole sequences. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/layer_norm.h"

namespace rwkv::cuda {

cudaError_t ln_shift(const LnShift& all, cudaStream_t stream);

}  // namespace rwkv::cuda

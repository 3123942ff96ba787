// LayerNorm and token shift of whole sequences. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/layer_norm.h"

namespace rwkv::cuda {

// `mixed` is written instead of all.mixed; Number is float, Bfloat16 or Float16.
template <class Number>
cudaError_t ln_shift(const LnShift& all, Number* mixed, cudaStream_t stream);

}  // namespace rwkv::cuda

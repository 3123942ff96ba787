// Random numbers for B rows. Torch-free.
#pragma once

#include "kernels/cuda/launch.h"

#include <cstdint>

namespace rwkv::cuda {

// out[b] = philox_number(seeds[b], samples[b], positions[b])
cudaError_t philox_uniform(const int64_t* seeds, const int64_t* samples, const int64_t* positions, int64_t B,
                           double* out, cudaStream_t stream);

}  // namespace rwkv::cuda

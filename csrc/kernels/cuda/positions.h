// The numbers of tokens that sequences have processed. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace rwkv::cuda {

// Adds 1 to positions[slots[b]], and copies the sum to after[b], for b below B. What slots that occur several times get
// is one more than before or later, as padding rows allow.
cudaError_t advance_positions(int64_t* positions, const int64_t* slots, int64_t B, int64_t* after, cudaStream_t stream);

}  // namespace rwkv::cuda

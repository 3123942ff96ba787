// y = LayerNorm(x) W^T for few rows x, with W in tiles: what a decoding step ends with, the logits. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/layer_norm.h"
#include "kernels/matrix.h"

namespace rwkv::cuda {

// With so many rows or fewer, every block of the product normalises them again.
constexpr int kNormalisedByBlocks = 4;

// x (B, K) -> y (B, N), as for `linear`. `normalised`: B * K numbers for LayerNorm(x), which a kernel of its own makes
// for more than kNormalisedByBlocks rows; not used for fewer. The bits of a row are the same in both ways.
cudaError_t norm_linear(const float* x, const LayerNorm& norm, const Matrix& matrix, int64_t B, float* normalised,
                        float* y, cudaStream_t stream);

}  // namespace rwkv::cuda

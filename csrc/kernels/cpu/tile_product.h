// W x for few rows x and 16 rows of a matrix W in tiles (kernels/tiles.h) of any format. Torch-free.
//
// Sums are float32. Activations are float32 with float weights, and integers with int8 weights (cpu/quantized.h).
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// The bytes of a prepared row of activations, a multiple of 64; B rows take B times as many.
int64_t prepared_size(const Matrix& matrix);

// Prepares row b of B, K activations x.
void prepare(const Matrix& matrix, const float* x, int64_t b, int64_t B, void* prepared);

// Prepares B consecutive rows x.
void prepare_rows(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run);

// sums[b][r] = sum over k of W[16 block + r, k] x[b][k], for B prepared rows x. The order of additions does not depend
// on B.
void tile_product(const Matrix& matrix, int64_t block, const void* prepared, int64_t B, Lanes* sums);

}  // namespace rwkv::cpu

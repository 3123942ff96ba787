// W x for a few rows x and 16 rows of a matrix W in tiles (kernels/tiles.h), whatever its weights are. Torch-free.
//
// Sums are float32. Activations stay so beside float weights, and become whole numbers beside int8 (cpu/quantized.h).
#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// Bytes of a row of activations as the product takes it; a multiple of 64.
int64_t prepared_size(const Matrix& matrix);

// Prepares one row x of K activations.
void prepare(const Matrix& matrix, const float* x, void* prepared);

// Prepares B rows x, one behind the other.
void prepare_rows(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run);

// sums[b][r] = sum over k of W[16 block + r, k] x[b][k], for `batch` prepared rows x one behind the other. A sum is
// added up in the same order whatever the batch.
void tile_product(const Matrix& matrix, int64_t block, const void* prepared, int64_t batch, Lanes* sums);

}  // namespace rwkv::cpu

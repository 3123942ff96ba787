// x W^T for few rows x that are mostly zero, with W^T row-major: the weights of inputs that are zero in all rows are
// not read. Torch-free.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// The bytes of a prepared row of activations, in addition to the row itself; a multiple of 64.
int64_t input_prepared_size(const Matrix& matrix);

// Prepares B consecutive rows x.
void prepare_inputs(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run);

// The inputs that are not zero in all of B rows of length K.
std::vector<int64_t> active_inputs(const float* x, int64_t B, int64_t K);

// sums[b][c] = sum over the active inputs k of W[from + c, k] x[b][k], for c < columns and B rows x (B, K) that are
// also prepared. Skipping an input that is zero does not change the result.
void input_product(const Matrix& matrix, const float* x, const void* prepared, const std::vector<int64_t>& active,
                   int64_t B, int64_t from, int64_t columns, float* sums);

}  // namespace rwkv::cpu

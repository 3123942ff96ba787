// x W^T for a few rows x of which most numbers are zero, W^T row after row: inputs that are zero in all rows are not
// read. Torch-free.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/parallel.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// Bytes of a row of activations beside itself as the product takes it; a multiple of 64.
int64_t input_prepared_size(const Matrix& matrix);

// Prepares B rows x, one behind the other.
void prepare_inputs(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run);

// The inputs that are not zero in every one of B rows of K.
std::vector<int64_t> active_inputs(const float* x, int64_t B, int64_t K);

// sums[b][c] = sum over the active inputs k of W[from + c, k] x[b][k], for B rows x (B, K), which are prepared too, and
// c < columns. Leaving an input of zero out changes no bit.
void input_product(const Matrix& matrix, const float* x, const void* prepared, const std::vector<int64_t>& active,
                   int64_t B, int64_t from, int64_t columns, float* sums);

}  // namespace rwkv::cpu

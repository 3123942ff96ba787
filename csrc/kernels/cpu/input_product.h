// x W^T for few rows x that are mostly zero, with W^T row-major: the weights of inputs that are zero in all rows are
// not read. Torch-free.
//
// The inputs are divided into parts, and the sums of the parts are added in order. Each thread reads the weights of its
// parts from beginning to end, and the result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/cpu/quantized.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

constexpr int64_t kInputParts = 16;

// The inputs [begin, end) of a part of K: whole groups (cpu/quantized.h). Parts may be empty, but the last one is not.
inline std::pair<int64_t, int64_t> inputs_of_part(int64_t K, int64_t part) {
  const int64_t groups = quantized_groups(K);
  return {groups * part / kInputParts * kQuantized, std::min(K, groups * (part + 1) / kInputParts * kQuantized)};
}

// sums[b][n] = sum over the inputs k of this part of W[n, k] x[b][k], for B rows x (B, K). Skipping an input that is
// zero does not change the result.
void input_product(const Matrix& matrix, const float* x, int64_t B, int64_t part, float* sums);

}  // namespace rwkv::cpu

// nvcuda::wmma as far as kernels use it: 16 x 16 matrices of float16 with sums in float32. A lane keeps whole matrices
// of factors, and 8 elements of a matrix of sums. Nothing here waits for other lanes, as the order of accesses to
// memory is the kernel's to ensure.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "emulation.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };

constexpr int kSide = 16, kSums = kSide * kSide / 32;

template <class Use, int m, int n, int k, class Number, class Layout = void>
struct fragment {
  static_assert(m == kSide && n == kSide && k == kSide);
  float at[kSide][kSide];
};
template <>
struct fragment<accumulator, kSide, kSide, kSide, float> {
  float at[kSums];
};

inline void require_aligned(const void* at, unsigned bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes) throw emulation::Error("a matrix of a warp is not aligned to 32 bytes");
}

// `from` has rows of a, or columns of b, `stride` numbers apart.
template <class Use, class Layout>
void load_matrix_sync(fragment<Use, kSide, kSide, kSide, __half, Layout>& to, const __half* from, unsigned stride) {
  require_aligned(from, 32), require_aligned(from + stride, 16);
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j) to.at[i][j] = __half2float(from[i * stride + j]);
}

using Sums = fragment<accumulator, kSide, kSide, kSide, float>;

inline void fill_fragment(Sums& sums, float value) {
  for (float& sum : sums.at) sum = value;
}

inline void mma_sync(Sums& to, const fragment<matrix_a, kSide, kSide, kSide, __half, row_major>& a,
                     const fragment<matrix_b, kSide, kSide, kSide, __half, col_major>& b, const Sums& sums) {
  for (int i = 0; i < kSums; ++i) {
    const unsigned element = emulation::lane_id() * kSums + i;
    float sum = sums.at[i];
    for (int k = 0; k < kSide; ++k) sum += a.at[element / kSide][k] * b.at[element % kSide][k];
    to.at[i] = sum;
  }
}

inline void store_matrix_sync(float* to, const Sums& sums, unsigned stride, layout_t) {
  require_aligned(to, 32);
  for (int i = 0; i < kSums; ++i) {
    const unsigned element = emulation::lane_id() * kSums + i;
    to[element / kSide * stride + element % kSide] = sums.at[i];
  }
}

}  // namespace nvcuda::wmma

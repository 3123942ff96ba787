// Products with rows of int4 W^T (kernels/tiles.h), whose groups of outputs have scales of their own: weights are
// converted to float32 and multiplied with float32 activations. Torch-free.
#pragma once

#include "kernels/cpu/quantized.h"

namespace rwkv::cpu {

// The words of weights in a row, which are at its end.
inline int64_t int4_row_words(int64_t N) { return (N + kInt4Outputs - 1) / kInt4Outputs; }

// The 16 possible weights of a group, by which its weights are looked up.
struct Int4Values {
#ifdef __AVX512F__
  __m512 table;

  RWKV_INLINE Int4Values(float scale, float minimum) {
    constexpr Lanes integers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    table = (__m512)(integers * scale + minimum);
  }
  // Those of 16 outputs, whose integers are in the low four bits of each lane; the other bits are ignored.
  RWKV_INLINE Lanes at(LaneBits integers) const {
    return (Lanes)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)integers, table);
  }
#else
  float scale, minimum;

  RWKV_INLINE Lanes at(LaneBits integers) const { return to_float((LaneInts)(integers & 15u)) * scale + minimum; }
#endif
};

// Converts the float16 scales and minimums of a row of n words to 4 n numbers, and what follows up to a multiple of 16.
inline void widen_parameters(const char* row, int64_t n, float* to) {
  for (int64_t i = 0; i < 4 * n; i += kTileRows)
    store_lanes(to + i, widen_row(reinterpret_cast<const Float16*>(row) + i));
}

}  // namespace rwkv::cpu

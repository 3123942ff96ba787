// Activations for products with int8 weights: they are quantised to 16-bit integers in groups with one scale each, so
// that sums within a group are exact and do not depend on the order of additions. Torch-free.
//
// 8 bits would not be enough: if one activation of a group is 50 times as large as the others, these would keep 2 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/lanes.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace rwkv::cpu {

// Inputs of a group. A sum is at most 256 x 127 x 32767 = 1.07e9, which fits into int32.
constexpr int64_t kQuantized = 256;

inline int64_t quantized_groups(int64_t K) { return (K + kQuantized - 1) / kQuantized; }

// Quantises x[k] * columns[k] of n <= kQuantized inputs to numbers[k] * scale, and returns the scale. It is NaN if an
// activation is not finite, and the number of that activation is not zero.
RWKV_INLINE float quantize(const float* x, const float* columns, int64_t n, int16_t* numbers) {
  float scaled[kQuantized];
  uint32_t largest = 0;
  for (int64_t k = 0; k < n; ++k) {
    scaled[k] = x[k] * columns[k];
    uint32_t bits;
    memcpy(&bits, scaled + k, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);  // ordered by magnitude; NaN is the largest
  }
  float magnitude;
  memcpy(&magnitude, &largest, sizeof magnitude);
  if (!(magnitude < INFINITY)) {
    for (int64_t k = 0; k < n; ++k) numbers[k] = !(std::abs(scaled[k]) < INFINITY);
    return NAN;
  }
  if (magnitude < 1e-30f) {  // its inverse would be infinite
    std::fill_n(numbers, n, 0);
    return 0;
  }
  const float inverse = 32767 / magnitude;
  for (int64_t k = 0; k < n; ++k) {
    // Adding 1.5 x 2^23 rounds to nearest, ties to even, in the same way at every instruction set level.
    const float rounded = scaled[k] * inverse + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &rounded, sizeof bits);
    numbers[k] = static_cast<int16_t>(bits);
  }
  return magnitude / 32767;
}

// The largest number of rows of activations per load of int8 weights; each row's sum is in a register.
#ifdef __AVX512BW__
constexpr int kSharing = 16;
#else
constexpr int kSharing = 4;
#endif

using LaneInts = int32_t __attribute__((vector_size(4 * kTileRows)));
using LaneShorts = int16_t __attribute__((vector_size(4 * kTileRows)));

RWKV_INLINE LaneInts load_ints(const int32_t* from) { return (LaneInts)load_bits(from); }

RWKV_INLINE void store_ints(int32_t* to, LaneInts ints) { memcpy(to, &ints, sizeof ints); }

RWKV_INLINE Lanes to_float(LaneInts ints) { return __builtin_convertvector(ints, Lanes); }

// 16 consecutive weights. The compiler's own conversion is not vectorised.
RWKV_INLINE LaneInts widen_ints(const int8_t* from) {
#if defined(__AVX512F__)
  return (LaneInts)_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  const __m256i halves[2] = {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))),
                             _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8)))};
  LaneInts ints;
  memcpy(&ints, halves, sizeof ints);
  return ints;
#else
  LaneInts ints;
  for (int i = 0; i < kTileRows; ++i) ints[i] = from[i];
  return ints;
#endif
}

// sums + w[0] x[0] + w[1] x[1] in every lane. Each lane has its own two w; x is the same for all.
RWKV_INLINE LaneInts add_pairs(LaneInts sums, LaneShorts w, uint32_t x) {
#if defined(__AVX512VNNI__)
  return (LaneInts)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)w, _mm512_set1_epi32(static_cast<int>(x)));
#elif defined(__AVX512BW__)
  return sums + (LaneInts)_mm512_madd_epi16((__m512i)w, _mm512_set1_epi32(static_cast<int>(x)));
#elif defined(__AVX2__)
  using Half = int32_t __attribute__((vector_size(32)));
  const LaneInts all = (LaneInts)w;
  const __m256i pair = _mm256_set1_epi32(static_cast<int>(x));
  const Half low = (Half)_mm256_madd_epi16((__m256i)__builtin_shufflevector(all, all, 0, 1, 2, 3, 4, 5, 6, 7), pair);
  const Half high =
      (Half)_mm256_madd_epi16((__m256i)__builtin_shufflevector(all, all, 8, 9, 10, 11, 12, 13, 14, 15), pair);
  return sums + __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const LaneInts all = (LaneInts)w;
  return sums + (all << 16 >> 16) * static_cast<int16_t>(x) + (all >> 16) * static_cast<int16_t>(x >> 16);
#endif
}

// Four inputs of 16 rows, which are one group of a tile, as pairs: inputs 0 and 2, and inputs 1 and 3.
struct Pairs {
  LaneShorts even, odd;
};

RWKV_INLINE Pairs pairs_of(LaneBits group) {
  const LaneShorts shorts = (LaneShorts)group;
  return {shorts << 8 >> 8, shorts >> 8};
}

// Stores a group of activations in the same order: 0, 2, 1, 3 of every four.
RWKV_INLINE void order_in_pairs(int16_t (&numbers)[kQuantized]) {
  for (int64_t k = 0; k < kQuantized; k += 2 * kTileRows) {
    LaneShorts s = (LaneShorts)load_bits(numbers + k);
    s = __builtin_shufflevector(s, s, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 16, 18, 17, 19, 20, 22, 21,
                                23, 24, 26, 25, 27, 28, 30, 29, 31);
    memcpy(numbers + k, &s, sizeof s);
  }
}

}  // namespace rwkv::cpu

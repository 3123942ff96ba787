// Vectors of sixteen float32, and the conversion of weights to them. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/tiles.h"
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

// Loops over lanes and tiles are fast only if the compiler knows their lengths, so they are inlined into each caller.
#define RWKV_INLINE inline __attribute__((always_inline))

namespace rwkv::cpu {

// The compiler splits these into the vector registers of the instruction set level.
using Lanes = float __attribute__((vector_size(4 * kTileRows)));
using LaneBits = uint32_t __attribute__((vector_size(4 * kTileRows)));

RWKV_INLINE LaneBits load_bits(const void* from) {
  LaneBits bits;
  memcpy(&bits, from, sizeof bits);
  return bits;
}

RWKV_INLINE Lanes as_float(LaneBits bits) {
  Lanes lanes;
  memcpy(&lanes, &bits, sizeof bits);
  return lanes;
}

RWKV_INLINE Lanes load_lanes(const float* from) { return as_float(load_bits(from)); }

RWKV_INLINE void store_lanes(float* to, Lanes lanes) { memcpy(to, &lanes, sizeof lanes); }

// max(x, 0)^2, which keeps NaN.
RWKV_INLINE Lanes squared_relu(Lanes x) {
  const Lanes positive = x < 0 ? Lanes{} : x;
  return positive * positive;
}

// Copies the first `n` of 16 numbers, mostly all of them: copying a number that the compiler knows calls no function.
RWKV_INLINE void copy_lanes(const float* from, int64_t n, float* to) {
  if (n == kTileRows)
    memcpy(to, from, kTileRows * sizeof *to);
  else
    std::copy_n(from, n, to);
}

// Converts a float16 in the low 16 bits to float32. Sign, exponent and mantissa are shifted into place, which gives a
// number too small by 2^112; scaling it is exact, and also converts float16's subnormal numbers. Weights are never
// infinite or NaN.
RWKV_INLINE Lanes widen_half(LaneBits half) {
  return as_float((half & 0x7fffu) << 13 | (half & 0x8000u) << 16) * 0x1p112f;
}

// The weights of input p of a group of 64 bytes, one for each of the 16 rows.
template <class Weight>
Lanes widen_group(LaneBits group, int p);

template <>
RWKV_INLINE Lanes widen_group<float>(LaneBits group, int) {
  return as_float(group);
}

template <>
RWKV_INLINE Lanes widen_group<Bfloat16>(LaneBits group, int p) {
  return as_float(p ? group & 0xffff0000u : group << 16);
}

template <>
RWKV_INLINE Lanes widen_group<Float16>(LaneBits group, int p) {
  return widen_half(p ? group >> 16 : group);
}

// 16 consecutive weights.
RWKV_INLINE Lanes widen_row(const float* from) { return load_lanes(from); }

RWKV_INLINE LaneBits load_16_bits(const void* from) {
  uint16_t bits __attribute__((vector_size(2 * kTileRows)));
  memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, LaneBits);
}

RWKV_INLINE Lanes widen_row(const Bfloat16* from) { return as_float(load_16_bits(from) << 16); }

RWKV_INLINE Lanes widen_row(const Float16* from) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  const auto* const eights = reinterpret_cast<const __m128i*>(from);
  const __m256 halves[2] = {_mm256_cvtph_ps(_mm_loadu_si128(eights)), _mm256_cvtph_ps(_mm_loadu_si128(eights + 1))};
  Lanes lanes;
  memcpy(&lanes, halves, sizeof lanes);
  return lanes;
#else
  return widen_half(load_16_bits(from));
#endif
}

}  // namespace rwkv::cpu

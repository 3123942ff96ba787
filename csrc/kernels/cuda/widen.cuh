// Converts weights of every format to float32. Torch-free; device code.
//
// The scales of columns (int8, int4) are multiplied into the activations, once for all outputs, and those of rows
// (int8) into the finished sums.
#pragma once

#include <cuda_fp16.h>

#include <cstring>
#include <type_traits>

#include "kernels/cuda/warp.cuh"
#include "kernels/matrix.h"

namespace rwkv::cuda {

__device__ inline float widen(float w) { return w; }

__device__ inline float widen(Bfloat16 w) {
  const uint32_t bits = static_cast<uint32_t>(w.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

__device__ inline float widen(Float16 w) {
  __half_raw raw;
  raw.x = w.bits;
  return __half2float(__half(raw));
}

__device__ inline float widen(int8_t w) { return w; }

// Converts n weights. For a byte u = q + 128, the float32 with the bits 0x4b0000uu is 2^23 + u, so one byte permutation
// and one exact subtraction suffice. Many devices convert integers at only an eighth of the rate of multiplications.
template <class Weight, int n>
__device__ void widen(const Pack<Weight, n>& weights, float* to) {
  if constexpr (std::is_same_v<Weight, int8_t> && n % 4 == 0) {
    uint32_t words[n / 4];
    memcpy(words, &weights, sizeof words);
#pragma unroll
    for (int i = 0; i < n; ++i)
      to[i] = __uint_as_float(__byte_perm(words[i / 4] ^ 0x80808080u, 0x4b000000u, 0x7440u + i % 4)) - 8388736.0f;
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = widen(weights.at[i]);
  }
}

__device__ inline bool has_column_scales(Format format) { return format == Format::int8 || format == Format::int4; }

// Whether the columns of these weights have scales.
template <class Weight>
constexpr bool kHasColumns = std::is_same_v<Weight, int8_t> || std::is_same_v<Weight, Int4>;

// The scale of a column, if these weights have such scales, and an activation times it.
template <class Weight>
__device__ float column_scale(const float* columns, int64_t k) {
  if constexpr (kHasColumns<Weight>)
    return columns[k];
  else
    return 1;
}
template <class Weight>
__device__ float scaled(float x, float column) {
  if constexpr (kHasColumns<Weight>)
    return x * column;
  else
    return x;
}

// A sum times the scale of its row, if these weights have such scales.
template <class Weight>
__device__ float times_row(float sum, const float* rows, int64_t n) {
  if constexpr (std::is_same_v<Weight, int8_t>)
    return sum * rows[n];
  else
    return sum;
}

}  // namespace rwkv::cuda

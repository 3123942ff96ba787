// Rounds float32 to the 16-bit formats of weights, to nearest, ties to even. Torch-free; device code.
#pragma once

#include <cuda_fp16.h>

#include <cstring>

#include "kernels/tiles.h"

namespace rwkv::cuda {

// Number is Bfloat16 or Float16, or float, which stays as it is.
template <class Number>
__device__ inline Number narrow(float x);

template <>
__device__ inline float narrow<float>(float x) {
  return x;
}

template <>
__device__ inline Bfloat16 narrow<Bfloat16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // the bits that are left might be those of infinity
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
__device__ inline Float16 narrow<Float16>(float x) {
  const __half_raw half = __float2half_rn(x);
  return {half.x};
}

}  // namespace rwkv::cuda

// Weights of every type as float32. Torch-free; device code.
#pragma once

#include <cuda_fp16.h>

#include <cstring>

#include "kernels/cuda/warp.cuh"
#include "kernels/tiles.h"

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

}  // namespace rwkv::cuda

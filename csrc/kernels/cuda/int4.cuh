// Converts int4 weights to float32: W = s q + m, with the scale s and the minimum m of a group. Torch-free; device
// code.
#pragma once

#include "kernels/cuda/widen.cuh"

namespace rwkv::cuda {

// Writes 16 + q for 4 weights q, those in the low (half 0) or the high (half 1) halves of the 4 bytes of a word. It is
// the float32 with the bits 0x41800000 + (q << 19), so one byte permutation per weight suffices.
__device__ inline void int4_bytes(uint32_t word, int half, float* to) {
  const uint32_t bytes = ((half ? word >> 1 : word << 3) & 0x78787878u) | 0x80808080u;
#pragma unroll
  for (int i = 0; i < 4; ++i)  // the bytes 0, 0, byte i, 0x41
    to[i] = __uint_as_float(__byte_perm(bytes, 0x41000000u, 0x7044u + (i << 8)));
}

// W = s (16 + q) + (m - 16 s). Because s and m have 11 bits, the difference is exact if m is 0 or between s / 256 and
// 32768 s; if not, it is rounded by 2^-24 of the larger of 16 s and m.
class Int4Group {
 public:
  // From the bits of s, in the low half, and m.
  __device__ explicit Int4Group(uint32_t bits)
      : scale_(widen(Float16{static_cast<uint16_t>(bits)})),
        offset_(fmaf(-16.0f, scale_, widen(Float16{static_cast<uint16_t>(bits >> 16)}))) {}

  // From 16 + q.
  __device__ float weight(float offset_q) const { return fmaf(scale_, offset_q, offset_); }

 private:
  float scale_, offset_;
};

}  // namespace rwkv::cuda

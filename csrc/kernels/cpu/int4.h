// Reading int4 weights (kernels/tiles.h): pairs of integers for products with quantised activations, and the scales and
// minimums of groups. Torch-free.
#pragma once

#include "kernels/cpu/quantized.h"

namespace rwkv::cpu {

// Converts the float16 in the low 16 bits of each lane, and the one in the high 16 bits.
RWKV_INLINE Lanes widen_low_half(LaneBits bits) { return widen_half(bits & 0xffffu); }
RWKV_INLINE Lanes widen_high_half(LaneBits bits) { return widen_half(bits >> 16); }

// Four inputs of 16 rows from a word of a tile, in the order of `pairs_of`: those in the low halves of its bytes, or
// those in the high halves.
RWKV_INLINE Pairs low_pairs(LaneBits word) {
  return {(LaneShorts)(word & 0x000f000fu), (LaneShorts)(word >> 8 & 0x000f000fu)};
}
RWKV_INLINE Pairs high_pairs(LaneBits word) {
  return {(LaneShorts)(word >> 4 & 0x000f000fu), (LaneShorts)(word >> 12 & 0x000f000fu)};
}

// The sum over a group of W[n, k] x[k] for 16 rows n, where `products` are the sums of q[n, k] numbers[k], and `total`
// is the sum of the numbers. `parameters` is word 0 of the tile.
struct Int4Group {
  Lanes scale, minimum;

  RWKV_INLINE explicit Int4Group(LaneBits parameters)
      : scale(widen_low_half(parameters)), minimum(widen_high_half(parameters)) {}
  RWKV_INLINE Lanes sum(LaneInts products, float total) const { return scale * to_float(products) + minimum * total; }
};

}  // namespace rwkv::cpu

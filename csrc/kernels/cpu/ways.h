// The choice between ways to compute products with many rows, whose speeds depend on the processor. Torch-free. To be
// made before the first product.
#pragma once

#include <atomic>

namespace rwkv::cpu {

// How bfloat16 weights are multiplied: widened to float32; or by dot products of bfloat16 pairs, for which activations
// are rounded to bfloat16, in vectors or in AMX tiles. Where a library or processor lacks a way, it must not be chosen;
// only `dot` is then the same as `float32`.
enum class Bfloat16Way { float32, dot, amx };
inline std::atomic<Bfloat16Way> bfloat16_way{Bfloat16Way::dot};

// Whether int8 weights are multiplied in AMX tiles, which gives the same bits as vectors do.
inline std::atomic<bool> int8_in_amx{false};

}  // namespace rwkv::cpu

// The choice between ways to compute a product whose speeds depend on the processor. Torch-free.
#pragma once

#include <atomic>

namespace rwkv::cpu {

// Whether bfloat16 weights are multiplied with many rows by the processor's dot products of bfloat16 pairs, for which
// activations are rounded to bfloat16; otherwise both are widened to float32. To be set before the first product. It
// has no effect on processors without such dot products.
inline std::atomic<bool> bfloat16_dot_products{true};

}  // namespace rwkv::cpu

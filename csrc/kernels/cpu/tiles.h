// Converts matrices to tiles (kernels/tiles.h) and back. Torch-free.
#pragma once

#include "kernels/cpu/parallel.h"
#include "kernels/tiles.h"

namespace rwkv::cpu {

// matrix (N, K) row-major -> tiles, padded with zeros.
template <class Weight>
void tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles, const Run& run);

template <class Weight>
void untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix, const Run& run);

}  // namespace rwkv::cpu

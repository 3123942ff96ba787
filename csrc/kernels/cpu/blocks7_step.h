// Consecutive layers of RWKV-7, one token in each of B sequences. Torch-free.
#pragma once

#include <span>

#include "kernels/cpu/parallel.h"
#include "kernels/mixing7_steps.h"

namespace rwkv::cpu {

int64_t scratch_bytes(std::span<const Block7Step> layers);  // for `scratch`, at a multiple of 64 bytes

// The multiply-adds of the longest loop over a matrix, by which the caller decides how many threads are worth it.
int64_t largest_loop(std::span<const Block7Step> layers);

// Runs the layers one after the other; each one's `y` is the `x` of the next.
void blocks7_step(std::span<const Block7Step> layers, void* scratch, const Run& run);

}  // namespace rwkv::cpu

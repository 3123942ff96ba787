// Random numbers for B rows. Torch-free.
#pragma once

#include <cstdint>

namespace rwkv::cpu {

// out[b] = philox_number(seeds[b], samples[b], positions[b])
void philox_uniform(const int64_t* seeds, const int64_t* samples, const int64_t* positions, int64_t B, double* out);

}  // namespace rwkv::cpu

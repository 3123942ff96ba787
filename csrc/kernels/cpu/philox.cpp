#include "kernels/cpu/philox.h"

#include "kernels/philox.h"

namespace rwkv::cpu {

void philox_uniform(const int64_t* seeds, const int64_t* samples, const int64_t* positions, int64_t B, double* out) {
  for (int64_t b = 0; b < B; ++b) out[b] = rwkv::philox_number(seeds[b], samples[b], positions[b]);
}

}  // namespace rwkv::cpu

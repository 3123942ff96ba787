// The CUDA kernel's draws are the CPU's, whatever the number of rows.
#include <vector>

#include "check.h"
#include "kernels/cuda/philox.h"
#include "kernels/philox.h"

int main() {
  emulation::in_every_order([](const char* order) {
    for (const int64_t B : {0, 1, 16, 128, 129, 300}) {
      std::vector<int64_t> seeds(B), samples(B), positions(B);
      for (int64_t b = 0; b < B; ++b) seeds[b] = -7 * b, samples[b] = b << 40, positions[b] = 3 * b + 1;
      std::vector<double> draws(B + 1, -1);
      CHECK(rwkv::cuda::philox_uniform(seeds.data(), samples.data(), positions.data(), B, draws.data(), nullptr) ==
                cudaSuccess,
            order, B);
      for (int64_t b = 0; b < B; ++b)
        CHECK(draws[b] == rwkv::philox_number(seeds[b], samples[b], positions[b]), order, B, b);
      CHECK(draws[B] == -1, order, B);
    }
  });
  return failures();
}

// One more token for some of the sequences of a pool.
#include <vector>

#include "check.h"
#include "emulation.h"
#include "kernels/cuda/positions.h"

using namespace rwkv;

int main() {
  emulation::in_every_order([](const char* order) {
    for (const int64_t B : {0, 1, 5, 300}) {
      const int64_t S = 2 * B + 1;
      std::vector<int64_t> positions, slots, after(B + 1, -1);
      for (int64_t s = 0; s < S; ++s) positions.push_back((int64_t{1} << 40) + 7 * s);
      for (int64_t b = 0; b < B; ++b) slots.push_back(S - 1 - 2 * b);
      const std::vector<int64_t> before = positions;
      CHECK(cuda::advance_positions(positions.data(), slots.data(), B, after.data(), nullptr) == cudaSuccess, order, B);
      for (int64_t b = 0; b < B; ++b) CHECK(after[b] == before[slots[b]] + 1, order, B, b, after[b]);
      for (int64_t s = 0; s < S; ++s) CHECK(positions[s] == before[s] + (s % 2 == 0 && s > 0), order, B, s);
      CHECK(after[B] == -1, order, B);
    }
  });
  return failures();
}

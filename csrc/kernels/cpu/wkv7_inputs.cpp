#include "kernels/cpu/wkv7_inputs.h"

#include <algorithm>
#include <array>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_product.h"

namespace rwkv::cpu {
namespace {

constexpr int64_t kUnit = 16;  // tokens
constexpr int64_t kMost = 64;  // tokens for which weights are read once; their inputs fit into the L2 cache

}  // namespace

void wkv7_inputs(const Wkv7InputsOp& op, const Run& run) {
  const Gates7& gates = op.gates;
  const LowRanks7 products(gates);
  const int64_t M = op.M, C = gates.C, A = gates.A;
  int64_t ranks = 0, most = 0, first_size = 0;
  std::array<int64_t, kLowRanks> second_size{};
  for (int i = 0; i < kLowRanks; ++i) {
    const LowRank& factors = products.of[i].factors;
    ranks += factors.second.K, most = std::max(most, factors.second.K);
    if (factors.second.K == 0) continue;
    first_size = std::max(first_size, prepared_size(factors.first)), second_size[i] = prepared_size(factors.second);
  }
  run((M + kUnit - 1) / kUnit, kUnit * ranks * (C + A), [=, &op, &gates, &products](int64_t begin, int64_t end) {
    const auto [in, second_w, second_a, second_g, second_v, hidden, x, sums] =
        thread_buffers<char, char, char, char, char, float, float, Lanes>(
            kMost * first_size, kMost * second_size[0], kMost * second_size[1], kMost * second_size[2],
            kMost * second_size[3], kMost * most, most, kLowRanks * kMost);
    const std::array<char*, kLowRanks> second{second_w, second_a, second_g, second_v};
    for (int64_t row = begin * kUnit; row < std::min(M, end * kUnit); row += kMost) {
      const int64_t n = std::min({kMost, M - row, end * kUnit - row});
      for (int i = 0; i < kLowRanks; ++i) {
        const auto& [factors, mix, activation] = products.of[i];
        const int64_t rank = factors.second.K;
        if (rank == 0) continue;
        const float* const mixed = op.mixed + (static_cast<int64_t>(mix) * M + row) * C;
        for (int64_t b = 0; b < n; ++b) prepare(factors.first, mixed + b * C, b, n, in);
        for (int64_t block = 0; block < tile_blocks(rank); ++block) {
          tile_product(factors.first, block, in, n, sums);
          const int64_t r = block * kTileRows, lanes = std::min<int64_t>(kTileRows, rank - r);
          for (int64_t b = 0; b < n; ++b)
            std::copy_n(reinterpret_cast<const float*>(sums + b), lanes, hidden + b * rank + r);
        }
        for (int64_t b = 0; b < n; ++b)
          prepare_activated(factors.second, activation, hidden + b * rank, b, n, x, second[i]);
      }
      for (int64_t block = 0; block < tile_blocks(A); ++block) {
        second_products(products, second.data(), block, 1, n, sums);
        for (int64_t b = 0; b < n; ++b) {
          const Lanes low[] = {sums[b], sums[n + b], sums[2 * n + b], sums[3 * n + b]};
          combine(gates, op.rows, row + b, block * kTileRows, low);
        }
      }
      for (int64_t i = row * A; i < (row + n) * A; i += op.N) normalise(op.rows.kappa + i, op.N);
    }
  });
}

}  // namespace rwkv::cpu

// Divides rows of activations into sets that share each load of weights. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rwkv::cpu {

// The first sets have as many rows as fit into registers, those of the remaining rows half as many, and so on. Calls
// fn(sharing, b) with the size and the first row of each set of B rows.
template <int sharing, class Function>
void for_each_set(int64_t B, const Function& fn, int64_t b = 0) {
  for (; b + sharing <= B; b += sharing) fn(std::integral_constant<int, sharing>{}, b);
  if constexpr (sharing > 1) for_each_set<sharing / 2>(B, fn, b);
}

}  // namespace rwkv::cpu

// Rows of activations that share one reading of the weights. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

namespace rwkv::cpu {

// As many rows as there are registers for, half as many of the rest, and so on. Calls fn(sharing, b) with the first row
// of each set of B.
template <int sharing, class Function>
void for_each_set(int64_t B, const Function& fn, int64_t b = 0) {
  for (; b + sharing <= B; b += sharing) fn(std::integral_constant<int, sharing>{}, b);
  if constexpr (sharing > 1) for_each_set<sharing / 2>(B, fn, b);
}

}  // namespace rwkv::cpu

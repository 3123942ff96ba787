// The rows of W^T of inputs that are not zero, a few at a time. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/quantized.h"
#include "kernels/cpu/row_sets.h"
#include "kernels/matrix.h"

namespace rwkv::cpu {

// Inputs that are looked at together; int8 activations share a scale over as many.
constexpr int64_t kGroup = kQuantized;

// Calls fn(together) with the number of rows of W^T to be added per load of the sums. One or two rows of activations
// wait for memory, which is fastest where few rows are read from beginning to end; more of them wait for arithmetic.
// More than 16 rows would not fit into the L1 cache, where rows of 2^n bytes compete for the same lines.
template <class Function>
void for_together(int64_t B, const Function& fn) {
  if (B <= 2)
    fn(std::integral_constant<int64_t, 8>{});
  else
    fn(std::integral_constant<int64_t, 16>{});
}

// The inputs in [begin, end), at most kGroup, that are not zero in all of B rows x of length K.
class ActiveInputs {
 public:
  ActiveInputs(const float* x, int64_t B, int64_t K, int64_t begin, int64_t end) {
    uint32_t any[kGroup] = {};  // the bits of all rows without signs; the compiler vectorises this loop
    for (int64_t b = 0; b < B; ++b)
      for (int64_t k = begin; k < end; ++k) {
        uint32_t bits;
        memcpy(&bits, x + b * K + k, sizeof bits);
        any[k - begin] |= bits << 1;
      }
    int64_t size = 0;  // a member would go through memory for every input
    for (int64_t k = begin; k < end; ++k) {
      inputs_[size] = k;
      size += any[k - begin] != 0;
    }
    size_ = size;
  }
  int64_t size() const { return size_; }
  int64_t operator[](int64_t i) const { return inputs_[i]; }

 private:
  int64_t size_ = 0, inputs_[kGroup];
};

// The next rows to be added, n <= together, and those after them; the last one is repeated where there are fewer. While
// the rows are read, those after them are prefetched: the hardware cannot know which rows are active.
template <int64_t together>
struct ActiveRows {
  int64_t n;
  const char *rows[together], *ahead[together];

  ActiveRows(const void* weights, int64_t row_bytes, const ActiveInputs& active, int64_t first)
      : n(std::min<int64_t>(together, active.size() - first)) {
    const int64_t last = active.size() - 1;
    for (int64_t i = 0; i < together; ++i) {
      rows[i] = static_cast<const char*>(weights) + active[std::min(first + i, last)] * row_bytes;
      ahead[i] = static_cast<const char*>(weights) + active[std::min(first + together + i, last)] * row_bytes;
    }
  }

  template <class Weight>
  RWKV_INLINE const Weight* row(int64_t i) const {
    return reinterpret_cast<const Weight*>(rows[i]);
  }

  // To be called for every 64 bytes. Into the L2 cache: rows of 2^n bytes compete for the same few lines of L1, where
  // those ahead would displace each other and those that are read.
  RWKV_INLINE void prefetch(int64_t offset) const { prefetch<together>(offset, 0); }

  // Only `n` rows, from this one on.
  template <int64_t n>
  RWKV_INLINE void prefetch(int64_t offset, int64_t from) const {
    for (int64_t i = from; i < from + n; ++i) __builtin_prefetch(ahead[i] + offset, 0, 2);
  }
};

}  // namespace rwkv::cpu

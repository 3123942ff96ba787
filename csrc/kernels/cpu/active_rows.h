// The rows of W^T of inputs that are not zero, a few at a time. Torch-free.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cpu/lanes.h"

namespace rwkv::cpu {

// Rows that are added per load of the sums. While they are read, the next ones are prefetched: the hardware cannot know
// which rows are active.
constexpr int64_t kTogether = 8;

// The inputs in [begin, end) that are not zero in all of B rows of length K.
inline void find_active(const float* x, int64_t B, int64_t K, int64_t begin, int64_t end,
                        std::vector<int64_t>* active) {
  active->clear();
  for (int64_t k = begin; k < end; ++k) {
    bool any = false;
    for (int64_t b = 0; b < B; ++b) any |= x[b * K + k] != 0;
    if (any) active->push_back(k);
  }
}

// The next rows to be added, n of them, and those after them; the last one is repeated where there are fewer.
struct ActiveRows {
  int64_t n;
  const char *rows[kTogether], *ahead[kTogether];

  ActiveRows(const void* weights, int64_t row_bytes, const std::vector<int64_t>& active, int64_t first)
      : n(std::min<int64_t>(kTogether, active.size() - first)) {
    const int64_t last = active.size() - 1;
    for (int64_t i = 0; i < kTogether; ++i) {
      rows[i] = static_cast<const char*>(weights) + active[std::min(first + i, last)] * row_bytes;
      ahead[i] = static_cast<const char*>(weights) + active[std::min(first + kTogether + i, last)] * row_bytes;
    }
  }

  template <class Weight>
  RWKV_INLINE const Weight* row(int64_t i) const {
    return reinterpret_cast<const Weight*>(rows[i]);
  }

  // To be called for every 64 bytes.
  RWKV_INLINE void prefetch(int64_t offset) const {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kTogether; ++i) __builtin_prefetch(ahead[i] + offset);
  }
};

}  // namespace rwkv::cpu

#include "kernels/cpu/ln_shift.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace rwkv::cpu {

void ln_shift(const LnShift& op, const Run& run) {
  const int64_t C = op.C, rows = op.B * op.T;
  run(rows, 16 * C, [&op, C, rows](int64_t begin, int64_t end) {
    std::vector<float> now(C), last(C);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / op.T, t = row % op.T;
      if (t == 0) {
        std::copy_n(op.shift + b * C, C, last.begin());
      } else if (row == begin) {  // another thread computes that row
        layer_norm(op.x + (row - 1) * C, C, op.norm, last.data());
      }
      layer_norm(op.x + row * C, C, op.norm, now.data());
      for (int64_t m = 0; m < op.M; ++m)
        token_shift(now.data(), last.data(), op.mixes + m * C, C, op.mixed + (m * rows + row) * C);
      if (t == op.T - 1) std::copy_n(now.begin(), C, op.last + b * C);
      std::swap(now, last);
    }
  });
}

}  // namespace rwkv::cpu

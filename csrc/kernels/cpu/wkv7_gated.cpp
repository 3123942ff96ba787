#include "kernels/cpu/wkv7_gated.h"

#include <algorithm>

#include "kernels/cpu/gates7.h"

namespace rwkv::cpu {

void wkv7_gated(const Wkv7Gated& op, const Run& run) {
  const int64_t H = op.H, N = op.N;
  run(op.M, 16 * H * N, [=, &op](int64_t begin, int64_t end) {
    std::copy_n(op.y + begin * H * N, (end - begin) * H * N, op.out + begin * H * N);
    for (int64_t head = begin * H; head < end * H; ++head) {
      const int64_t i = head * N, n = head % H * N;
      const LayerNorm norm{op.norm.weight + n, op.norm.bias + n, op.norm.eps};
      gate_head(op.r + i, op.k + i, op.v + i, op.r_k + n, norm, op.gate + i, N, op.out + i);
    }
  });
}

}  // namespace rwkv::cpu

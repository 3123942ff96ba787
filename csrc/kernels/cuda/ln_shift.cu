#include "kernels/cuda/ln_shift.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/narrow.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

// Computes all mixes of one row. The previous row is normalised again, with the same arithmetic, which avoids waiting
// for the block that also does it.
template <class Number>
__global__ void __launch_bounds__(kThreads) ln_shift_kernel(LnShift all, Number* mixed) {
  __shared__ RowStatistics<2, kThreads> statistics;
  const int64_t row = blockIdx.x, b = row / all.T, t = row % all.T, C = all.C;
  const bool is_first = t == 0;
  const int now_row = is_first ? 0 : 1;
  const float *const x = all.x + row * C, *const before = is_first ? all.shift + b * C : x - C;
  row_statistics(is_first ? x : before, now_row + 1, C, all.norm.eps, statistics);
  for (int64_t c = thread(); c < C; c += kThreads) {
    const float weight = all.norm.weight[c], bias = all.norm.bias[c];
    const auto normalise = [&](float number, int of) {
      return normalised(number, statistics.mean[of], statistics.scale[of], weight, bias);
    };
    const float now = normalise(x[c], now_row);
    const float last = is_first ? before[c] : normalise(before[c], 0);
    for (int64_t m = 0; m < all.M; ++m)
      mixed[(m * all.B * all.T + row) * C + c] = narrow<Number>(token_shift(now, last, all.mixes[m * C + c]));
    if (t == all.T - 1) all.last[b * C + c] = now;
  }
}

}  // namespace

template <class Number>
cudaError_t ln_shift(const LnShift& all, Number* mixed, cudaStream_t stream) {
  return launch(&ln_shift_kernel<Number>, grid_of(all.B * all.T), kThreads, 0, stream, all, mixed);
}

template cudaError_t ln_shift(const LnShift&, float*, cudaStream_t);
template cudaError_t ln_shift(const LnShift&, Bfloat16*, cudaStream_t);
template cudaError_t ln_shift(const LnShift&, Float16*, cudaStream_t);

}  // namespace rwkv::cuda

#include "kernels/cuda/activate_rows.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_power.cuh"
#include "kernels/math.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

// A block has one row.
template <class Number>
__global__ void __launch_bounds__(kThreads)
    activate_rows_kernel(const float* x, const float* gate, int64_t K, Number* rows, float* powers) {
  const int64_t first = blockIdx.x * K;
  const auto at = [=](int64_t k) {
    const float number = x[first + k];
    if (gate) return sigmoid(gate[first + k]) * number;
    const float positive = number < 0 ? 0 : number;
    return positive * positive;
  };
  const float power = scale_row<Number, kThreads>(at, K, rows + first);
  if (thread() == 0) powers[blockIdx.x] = power;
}

__global__ void __launch_bounds__(kThreads) residual_rows_kernel(const float* x, const float* gate, const float* y,
                                                                 const float* powers, int64_t K, float* out) {
  const int64_t first = blockIdx.x * K;
  const float power = powers[blockIdx.x];
#pragma unroll 4
  for (int64_t i = first + thread(); i < first + K; i += kThreads)
    out[i] = fmaf(gate ? sigmoid(gate[i]) : 1.0f, y[i] * power, x[i]);
}

}  // namespace

template <class Number>
cudaError_t activate_rows(const float* x, const float* gate, int64_t M, int64_t K, Number* rows, float* powers,
                          cudaStream_t stream) {
  return launch(&activate_rows_kernel<Number>, grid_of(M), kThreads, 0, stream, x, gate, K, rows, powers);
}

template cudaError_t activate_rows(const float*, const float*, int64_t, int64_t, Bfloat16*, float*, cudaStream_t);
template cudaError_t activate_rows(const float*, const float*, int64_t, int64_t, Float16*, float*, cudaStream_t);

cudaError_t residual_rows(const float* x, const float* gate, const float* y, const float* powers, int64_t M, int64_t K,
                          float* out, cudaStream_t stream) {
  return launch(&residual_rows_kernel, grid_of(M), kThreads, 0, stream, x, gate, y, powers, K, out);
}

}  // namespace rwkv::cuda

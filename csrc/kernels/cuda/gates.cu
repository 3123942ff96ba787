#include "kernels/cuda/gates.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.cuh"
#include "kernels/math.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int64_t index() { return static_cast<int64_t>(blockIdx.x) * kThreads + thread(); }

__global__ void __launch_bounds__(kThreads) squared_relu_kernel(float* k, int64_t n) {
  const int64_t i = index();
  if (i >= n) return;
  const float positive = k[i] < 0 ? 0 : k[i];
  k[i] = positive * positive;
}

__global__ void __launch_bounds__(kThreads)
    gate_residual_kernel(const float* x, const float* r, const float* y, int64_t n, float* out) {
  const int64_t i = index();
  if (i >= n) return;
  out[i] = fmaf(sigmoid(r[i]), y[i], x ? x[i] : 0.0f);
}

}  // namespace

cudaError_t squared_relu(float* k, int64_t n, cudaStream_t stream) {
  return launch(&squared_relu_kernel, grid_of(pieces(n, kThreads)), kThreads, 0, stream, k, n);
}

cudaError_t gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out, cudaStream_t stream) {
  return launch(&gate_residual_kernel, grid_of(pieces(n, kThreads)), kThreads, 0, stream, x, r, y, n, out);
}

}  // namespace rwkv::cuda

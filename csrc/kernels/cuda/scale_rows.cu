#include "kernels/cuda/scale_rows.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_power.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

// A block has one row.
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(const float* x, const float* columns, int64_t K, Float16* halves, float* powers) {
  const float* const row = x + blockIdx.x * K;
  const auto at = [=](int64_t k) { return columns ? row[k] * columns[k] : row[k]; };
  const float power = scale_row<Float16, kThreads>(at, K, halves + blockIdx.x * K);
  if (thread() == 0) powers[blockIdx.x] = power;
}

}  // namespace

cudaError_t scale_rows(const float* x, const float* columns, int64_t M, int64_t K, uint16_t* halves, float* powers,
                       cudaStream_t stream) {
  return launch(&scale_rows_kernel, grid_of(M), kThreads, 0, stream, x, columns, K, reinterpret_cast<Float16*>(halves),
                powers);
}

}  // namespace rwkv::cuda

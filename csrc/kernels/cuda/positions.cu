#include "kernels/cuda/positions.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    advance_positions_kernel(int64_t* positions, const int64_t* slots, int64_t B, int64_t* after) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + thread();
  if (b < B) after[b] = positions[slots[b]] += 1;
}

}  // namespace

cudaError_t advance_positions(int64_t* positions, const int64_t* slots, int64_t B, int64_t* after,
                              cudaStream_t stream) {
  return launch(&advance_positions_kernel, grid_of(pieces(B, kThreads)), kThreads, 0, stream, positions, slots, B,
                after);
}

}  // namespace rwkv::cuda

#include "kernels/cuda/philox.h"

#include "kernels/philox.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 128;

// A thread computes one number.
__global__ void __launch_bounds__(kThreads) philox_uniform_kernel(const int64_t* seeds, const int64_t* samples,
                                                                  const int64_t* positions, int64_t B, double* out) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (b < B) out[b] = rwkv::philox_number(seeds[b], samples[b], positions[b]);
}

}  // namespace

cudaError_t philox_uniform(const int64_t* seeds, const int64_t* samples, const int64_t* positions, int64_t B,
                           double* out, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((B + kThreads - 1) / kThreads);
  return launch(philox_uniform_kernel, blocks, kThreads, 0, stream, seeds, samples, positions, B, out);
}

}  // namespace rwkv::cuda

#include "kernels/cuda/embed_norm.h"

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"
#include "kernels/cuda/widen.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

// A block has one token. A thread reads only what it has written, so no barrier is needed for `out`.
template <class Number>
__global__ void __launch_bounds__(kThreads) embed_norm_kernel(const int64_t* tokens, const Number* table, int64_t C,
                                                              LayerNorm norm, Counted counted, float* out) {
  __shared__ RowStatistics<1, kThreads> statistics;
  const Number* const row = table + (tokens ? tokens[blockIdx.x] : blockIdx.x) * C;
  float* const x = out + blockIdx.x * C;
  if (counted.positions && thread() == 0) counted.after[blockIdx.x] = counted.positions[counted.slots[blockIdx.x]] += 1;
  for (int64_t c = thread(); c < C; c += kThreads) x[c] = widen(row[c]);
  row_statistics(x, 1, C, norm.eps, statistics);
  for (int64_t c = thread(); c < C; c += kThreads)
    x[c] = normalised(x[c], statistics.mean[0], statistics.scale[0], norm.weight[c], norm.bias[c]);
}

}  // namespace

template <class Number>
cudaError_t embed_norm(const int64_t* tokens, int64_t B, const Number* table, int64_t C, const LayerNorm& norm,
                       const Counted& counted, float* out, cudaStream_t stream) {
  return launch(&embed_norm_kernel<Number>, grid_of(B), kThreads, 0, stream, tokens, table, C, norm, counted, out);
}

template cudaError_t embed_norm(const int64_t*, int64_t, const float*, int64_t, const LayerNorm&, const Counted&,
                                float*, cudaStream_t);
template cudaError_t embed_norm(const int64_t*, int64_t, const Bfloat16*, int64_t, const LayerNorm&, const Counted&,
                                float*, cudaStream_t);
template cudaError_t embed_norm(const int64_t*, int64_t, const Float16*, int64_t, const LayerNorm&, const Counted&,
                                float*, cudaStream_t);

}  // namespace rwkv::cuda

#include "kernels/cuda/wkv4.h"

#include "kernels/cuda/launch.h"
#include "kernels/cuda/wkv4_scan.cuh"

namespace rwkv::cuda {
namespace {

// Computes each chunk from the state before it. A last chunk that is not full also writes the state after it.
template <class Real>
__global__ void wkv4_kernel(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4ConstStates<Real> starts, Real* __restrict__ y,
                            Wkv4States<Real> end) {
  const Wkv4Part part(size);
  if (part.c >= size.C) return;
  const Real decay = in.decay[part.c], first = in.first[part.c];
  Wkv4State<Real> s = starts.load(part.chunk);
  int64_t at = part.token;
#pragma unroll 4
  for (int t = 0; t < part.tokens; ++t, at += size.C) {
    const Real k = __ldg(in.k + at), v = __ldg(in.v + at);
    y[at] = wkv4_output(first, k, v, s);
    s = wkv4_update(decay, k, v, s);
  }
  if (part.tokens < kWkv4Chunk) end.store(part.row, s);
}

}  // namespace

int64_t wkv4_scratch_numbers(Wkv4Size size) {
  return size.T < kWkv4Chunk ? 0 : 6 * size.B * wkv4_chunks(size.T) * size.C;
}

template <class Real>
cudaError_t wkv4(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4Outputs<Real> out, Real* scratch, cudaStream_t stream) {
  const int64_t chunks = wkv4_chunks(size.T), n = size.B * chunks * size.C;
  const Wkv4States<Real> end{out.num, out.den, out.max};
  Wkv4ConstStates<Real> starts{in.num, in.den, in.max};  // (B, 1, C): the state before a single chunk
  if (size.T >= kWkv4Chunk) {
    const Wkv4States<Real> sums{scratch, scratch + n, scratch + 2 * n};
    const Wkv4States<Real> found{scratch + 3 * n, scratch + 4 * n, scratch + 5 * n};
    const cudaError_t status = wkv4_starts(size, in, sums, found, end, stream);
    if (status != cudaSuccess) return status;
    starts = {found.num, found.den, found.max};
  }
  return launch(wkv4_kernel<Real>, wkv4_grid(size, chunks), kWkv4Threads, 0, stream, size, in, starts, out.y, end);
}

template cudaError_t wkv4(Wkv4Size, Wkv4Inputs<float>, Wkv4Outputs<float>, float*, cudaStream_t);
template cudaError_t wkv4(Wkv4Size, Wkv4Inputs<double>, Wkv4Outputs<double>, double*, cudaStream_t);

}  // namespace rwkv::cuda

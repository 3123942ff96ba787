// The gradients of wkv4, chunk by chunk as in the forward pass.
//
// Let (n, d, m) be the gradients with respect to (num, den, max), and r = m - n num - d den the part of m that is not
// due to the scale of A = num e^max and B = den e^max. The outputs depend only on A and B, so they do not contribute to
// r. A step backward (f1, f2, share as in wkv4_step_backward) is
//   n <- f1 n + g e1        d <- f1 d - g y e1        r <- share r
// which is diagonal: the effect of a chunk on (n, d, r) consists of two factors and two sums, which can be computed in
// forward order. There are four passes: the state before each chunk; the factors and sums of each chunk; the gradients
// after each chunk (sequentially, last chunk first); the gradients within each chunk, from its state and the gradients
// after it.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/wkv4.h"
#include "kernels/cuda/wkv4_scan.cuh"

namespace rwkv::cuda {
namespace {

// The effect of a chunk: n <- decayed n + num, d <- decayed d + den, r <- share r.
template <class Real>
struct Adjoints {
  Real *num, *den, *decayed, *share;
};

// The gradients (n, d, r) after each chunk.
template <class Real>
struct Ends {
  Real *num, *den, *rest;
};

template <class Real>
__global__ void wkv4_adjoints_kernel(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad,
                                     Wkv4ConstStates<Real> starts, Adjoints<Real> adjoints, Ends<Real> ends) {
  const Wkv4Part part(size);
  if (part.c >= size.C) return;
  const Real decay = in.decay[part.c], first = in.first[part.c];
  Wkv4State<Real> s = starts.load(part.chunk);
  Real num = 0, den = 0, decayed = 1, share = 1;
  int64_t at = part.token;
#pragma unroll 2
  for (int t = 0; t < part.tokens; ++t, at += size.C) {
    const Real k = __ldg(in.k + at), v = __ldg(in.v + at);
    const auto from_y = wkv4_step_backward<Real>(decay, first, k, v, s, __ldg(grad.y + at), {0, 0, 0}).state;
    num += decayed * from_y.num;
    den += decayed * from_y.den;
    const Real kept = s.max + decay;
    s = wkv4_update(decay, k, v, s);
    decayed *= exp_nonpositive(kept - s.max);
    share *= kept > k ? Real(1) : (kept < k ? Real(0) : Real(0.5));
  }
  adjoints.num[part.chunk] = num, adjoints.den[part.chunk] = den;
  adjoints.decayed[part.chunk] = decayed, adjoints.share[part.chunk] = share;
  if (part.is_last)
    ends.rest[part.chunk] = grad.max[part.row] - grad.num[part.row] * s.num - grad.den[part.row] * s.den;
}

template <class Real>
__global__ void wkv4_ends_kernel(Wkv4Size size, Wkv4OutputGrads<Real> grad, Adjoints<const Real> adjoints,
                                 Ends<Real> ends) {
  const Wkv4Part part(size, 1);  // the first chunk; this thread processes all chunks
  if (part.c >= size.C) return;
  const int64_t chunks = wkv4_chunks(size.T);
  int64_t at = part.chunk + (chunks - 1) * size.C;
  Real num = grad.num[part.row], den = grad.den[part.row], rest = ends.rest[at];
#pragma unroll 4
  for (int64_t j = chunks - 1; j >= 0; --j, at -= size.C) {
    ends.num[at] = num, ends.den[at] = den, ends.rest[at] = rest;
    const Real decayed = __ldg(adjoints.decayed + at);
    num = decayed * num + __ldg(adjoints.num + at);
    den = decayed * den + __ldg(adjoints.den + at);
    rest *= __ldg(adjoints.share + at);
  }
}

// `decay` and `first`, (B, chunks, C), are the contributions of each chunk to the gradients of these arguments.
template <class Real>
__global__ void __launch_bounds__(kWkv4Threads)
    wkv4_backward_kernel(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4ConstStates<Real> starts,
                         Ends<const Real> ends, Wkv4InputGrads<Real> out, Real* decay_parts, Real* first_parts) {
  __shared__ Wkv4State<Real> before[kWkv4Chunk][kWkv4Threads];  // each thread reads only what it has written
  const Wkv4Part part(size);
  if (part.c >= size.C) return;
  const Real decay = in.decay[part.c], first = in.first[part.c];
  Wkv4State<Real> s = starts.load(part.chunk);
  int64_t at = part.token;
#pragma unroll 4
  for (int t = 0; t < part.tokens; ++t, at += size.C) {
    before[t][threadIdx.x] = s;
    s = wkv4_update(decay, __ldg(in.k + at), __ldg(in.v + at), s);
  }
  Wkv4State<Real> g{ends.num[part.chunk], ends.den[part.chunk], 0};
  g.max = ends.rest[part.chunk] + g.num * s.num + g.den * s.den;
  Real decay_sum = 0, first_sum = 0;
#pragma unroll 2
  for (int t = part.tokens - 1; t >= 0; --t) {
    at -= size.C;
    const auto step = wkv4_step_backward<Real>(decay, first, __ldg(in.k + at), __ldg(in.v + at), before[t][threadIdx.x],
                                               __ldg(grad.y + at), g);
    out.k[at] = step.k, out.v[at] = step.v;
    decay_sum += step.decay, first_sum += step.first;
    g = step.state;
  }
  decay_parts[part.chunk] = decay_sum, first_parts[part.chunk] = first_sum;
  if (part.is_first) Wkv4States<Real>{out.num, out.den, out.max}.store(part.row, g);
}

constexpr int kSumColumns = 32, kSumRows = 16;

// Sums two arrays (rows, C), selected by blockIdx.y, over the rows, in an order that depends only on `rows`.
template <class Real>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    wkv4_vector_grads_kernel(int64_t rows, int64_t C, const Real* decay_parts, const Real* first_parts, Real* decay,
                             Real* first) {
  __shared__ Real sums[kSumRows][kSumColumns];
  const Real* const parts = blockIdx.y == 0 ? decay_parts : first_parts;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  Real sum = 0;
  if (c < C) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += kSumRows) sum += __ldg(parts + row * C + c);
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= C) return;
  for (int i = 1; i < kSumRows; ++i) sum += sums[i][threadIdx.x];
  (blockIdx.y == 0 ? decay : first)[c] = sum;
}

}  // namespace

int64_t wkv4_backward_scratch_numbers(Wkv4Size size) { return 10 * size.B * wkv4_chunks(size.T) * size.C; }

template <class Real>
cudaError_t wkv4_backward(Wkv4Size size, Wkv4Inputs<Real> in, Wkv4OutputGrads<Real> grad, Wkv4InputGrads<Real> out,
                          Real* scratch, cudaStream_t stream) {
  const int64_t chunks = wkv4_chunks(size.T), n = size.B * chunks * size.C;
  Real* const starts = scratch;
  Real* const ends = scratch + 3 * n;
  Real* const work = scratch + 6 * n;  // the chunks' sums, then the adjoints, then the parts of the vectors' gradients
  const dim3 all = wkv4_grid(size, chunks), one = wkv4_grid(size, 1);
  const Wkv4ConstStates<Real> from{starts, starts + n, starts + 2 * n};

  cudaError_t status = wkv4_starts<Real>(size, in, {work, work + n, work + 2 * n}, {starts, starts + n, starts + 2 * n},
                                         {nullptr, nullptr, nullptr}, stream);
  if (status != cudaSuccess) return status;
  status = launch(wkv4_adjoints_kernel<Real>, all, kWkv4Threads, 0, stream, size, in, grad, from,
                  {work, work + n, work + 2 * n, work + 3 * n}, {ends, ends + n, ends + 2 * n});
  if (status != cudaSuccess) return status;
  status = launch(wkv4_ends_kernel<Real>, one, kWkv4Threads, 0, stream, size, grad,
                  {work, work + n, work + 2 * n, work + 3 * n}, {ends, ends + n, ends + 2 * n});
  if (status != cudaSuccess) return status;
  status = launch(wkv4_backward_kernel<Real>, all, kWkv4Threads, 0, stream, size, in, grad, from,
                  {ends, ends + n, ends + 2 * n}, out, work, work + n);
  if (status != cudaSuccess) return status;
  const dim3 columns(static_cast<unsigned>((size.C + kSumColumns - 1) / kSumColumns), 2);
  return launch(wkv4_vector_grads_kernel<Real>, columns, dim3(kSumColumns, kSumRows), 0, stream, size.B * chunks,
                size.C, work, work + n, out.decay, out.first);
}

template cudaError_t wkv4_backward(Wkv4Size, Wkv4Inputs<float>, Wkv4OutputGrads<float>, Wkv4InputGrads<float>, float*,
                                   cudaStream_t);
template cudaError_t wkv4_backward(Wkv4Size, Wkv4Inputs<double>, Wkv4OutputGrads<double>, Wkv4InputGrads<double>,
                                   double*, cudaStream_t);

}  // namespace rwkv::cuda

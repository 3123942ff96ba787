// Rows of a head's matrix are independent. A block processes its rows for all tokens, with the rows in registers. The
// vectors of the next tokens are loaded while those in shared memory are used.
#include "kernels/cuda/wkv7.h"

#include "kernels/cuda/wkv7_lanes.cuh"

namespace rwkv::cuda {
namespace {

// One channel of one token.
template <class Real>
struct Channel {
  Real r, w, k, v, kappa, replaced;
};

template <class Real, int kN>
struct Vectors {
  Real r[kWkv7Tokens][kN], w[kWkv7Tokens][kN], k[kWkv7Tokens][kN], v[kWkv7Tokens][kN], kappa[kWkv7Tokens][kN],
      replaced[kWkv7Tokens][kN];
};

// out.y, out.state and the arrays of `kept` may be null.
template <class Real, int kN>
__global__ void __launch_bounds__(Wkv7Part<Real, kN>::kThreads, 1)
    wkv7_kernel(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, Wkv7Kept<Real> kept) {
  using Part = Wkv7Part<Real, kN>;
  constexpr int kPart = Part::kSize, kThreads = Part::kThreads, kEach = kWkv7Tokens * kN / kThreads;
  __shared__ __align__(16) Vectors<Real, kN> both[2];  // of these tokens, and of the next ones
  const Wkv7Slice<Part> rows(size);
  const int N = rows.N, i = rows.mine();
  const int64_t head = rows.head, start = rows.start, step = rows.step;

  Channel<Real> next[kEach];
  Real a[kEach];
  const auto load = [&](int64_t first) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int place = thread() + e * kThreads, j = place % kN;
      const int64_t t = first + place / kN, at = start + t * step + j;
      const bool exists = t < size.T && j < N;
      next[e].r = exists ? __ldg(in.r + at) : Real(0);
      next[e].w = exists ? __ldg(in.w + at) : Real(0);
      next[e].k = exists ? __ldg(in.k + at) : Real(0);
      next[e].v = exists ? __ldg(in.v + at) : Real(0);
      next[e].kappa = exists ? __ldg(in.kappa + at) : Real(0);
      a[e] = exists ? __ldg(in.a + at) : Real(0);
    }
  };
  const auto share = [&](Vectors<Real, kN>& vectors) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int place = thread() + e * kThreads, t = place / kN, j = place % kN;
      vectors.r[t][j] = next[e].r, vectors.w[t][j] = next[e].w;
      vectors.k[t][j] = next[e].k, vectors.v[t][j] = next[e].v;
      vectors.kappa[t][j] = next[e].kappa, vectors.replaced[t][j] = next[e].kappa * a[e];
    }
  };

  Real s[kPart];
  const auto store = [&](Real* state) {
#pragma unroll
    for (int m = 0; m < kPart; ++m)
      if (const int j = Part::place(m); i < N && j < N) state[i * N + j] = s[m];
  };
#pragma unroll
  for (int m = 0; m < kPart; ++m) s[m] = element(in.state + head * N * N, N, i, Part::place(m));
  const int64_t chunks = (size.T + kept.chunk - 1) / kept.chunk;
  int64_t chunk = 0;
  load(0);
  for (int64_t first = 0; first < size.T; first += kWkv7Tokens) {
    Vectors<Real, kN>& vectors = both[first / kWkv7Tokens % 2];
    share(vectors);
    __syncthreads();
    load(first + kWkv7Tokens);
    if (kept.states && first == chunk * kept.chunk) store(kept.states + (head * chunks + chunk++) * N * N);
    const int tokens = static_cast<int>(min(size.T - first, static_cast<int64_t>(kWkv7Tokens)));
#pragma unroll 1
    for (int t = 0; t < tokens; ++t) {
      Products<Real, kN, 4> with_kappa, with_r;
#pragma unroll
      for (int m = 0; m < kPart; ++m) with_kappa.add(m, s[m], vectors.kappa[t][Part::place(m)]);
      const Real removed = with_kappa.total(), v = vectors.v[t][i];
#pragma unroll
      for (int m = 0; m < kPart; ++m) {
        const int j = Part::place(m);
        s[m] = wkv7_update(s[m], vectors.w[t][j], removed, vectors.replaced[t][j], v, vectors.k[t][j]);
        with_r.add(m, s[m], vectors.r[t][j]);
      }
      const Real y = with_r.total();
      const int64_t at = start + (first + t) * step + i;
      if (rows.writes() && out.y) out.y[at] = y;
      if (rows.writes() && kept.removed) kept.removed[at] = removed;
    }
  }
  if (out.state) store(out.state + head * N * N);
}

template <class Real>
cudaError_t run(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, Wkv7Kept<Real> kept, cudaStream_t stream) {
  return for_channels(size.N, [&](auto channels) {
    return launch_wkv7<Wkv7Part<Real, channels>>(wkv7_kernel<Real, channels>, size, stream, in, out, kept);
  });
}

}  // namespace

template <class Real>
cudaError_t wkv7(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, cudaStream_t stream) {
  return run(size, in, out, {nullptr, nullptr, kWkv7Tokens}, stream);
}

template <class Real>
cudaError_t wkv7_keep(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Kept<Real> kept, cudaStream_t stream) {
  return run(size, in, {nullptr, nullptr}, kept, stream);
}

template cudaError_t wkv7(Wkv7Size, Wkv7Inputs<float>, Wkv7Outputs<float>, cudaStream_t);
template cudaError_t wkv7(Wkv7Size, Wkv7Inputs<double>, Wkv7Outputs<double>, cudaStream_t);
template cudaError_t wkv7_keep(Wkv7Size, Wkv7Inputs<float>, Wkv7Kept<float>, cudaStream_t);
template cudaError_t wkv7_keep(Wkv7Size, Wkv7Inputs<double>, Wkv7Kept<double>, cudaStream_t);

}  // namespace rwkv::cuda

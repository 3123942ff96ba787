// The gradients of wkv7, last token first.
//
// Let G be the gradient with respect to the state after a token, to which y has contributed. With u = S kappa and
// b = kappa a, where S is the state before the token and S' the one after it,
//   dr = S'^T dy    dv = G k    dk = G^T v    dw_j = sum over i of G_ij S_ij    du = -G b    db = -G^T u
//   dkappa = a db + S^T du      da = kappa db                                   G <- G diag(w) + du kappa^T
// These are sums over rows of G, and over columns of G and S. So that most of them need no other thread, four lanes
// have one row of G, and also the same column of G and of S; du is all that a token passes on between threads.
//
// There are two kernels. The first is the forward pass, which keeps the state before each chunk of tokens, and u. The
// second has one block for each head. It computes the states of a chunk again, which need no sums as u is known, writes
// them to memory that only the same thread reads, and then processes the chunk's tokens, last token first.
#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/wkv7_lanes.cuh"

namespace rwkv::cuda {
namespace {

template <int kN>
constexpr int kThreads = kN * kWkv7Lanes;

// About sqrt(T), so that the states before all chunks and those of one chunk are equally many.
int64_t chunk_of(int64_t T) {
  int64_t chunk = 16;
  while (chunk * chunk < T) chunk *= 2;
  return chunk;
}

template <class Real, int kN>
struct Vectors {
  Real r[kWkv7Tokens][kN], w[kWkv7Tokens][kN], k[kWkv7Tokens][kN], v[kWkv7Tokens][kN], kappa[kWkv7Tokens][kN],
      a[kWkv7Tokens][kN], replaced[kWkv7Tokens][kN], removed[kWkv7Tokens][kN], dy[kWkv7Tokens][kN];
};

// `states`: (B, H, chunk, kN / 4, kThreads<kN>), the states of one chunk of tokens.
template <class Real, int kN>
__global__ void __launch_bounds__(kThreads<kN>, 512 / kThreads<kN>)
    wkv7_backward_kernel(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7OutputGrads<Real> grad, Wkv7InputGrads<Real> out,
                         Wkv7Kept<const Real> kept, Real* __restrict__ states) {
  constexpr int kPart = kWkv7Part<kN>;
  __shared__ __align__(16) Vectors<Real, kN> vectors;
  __shared__ __align__(16) Real removed_grads[2][kN];
  const int N = static_cast<int>(size.N);
  const int64_t head = blockIdx.x, b = head / size.H, h = head % size.H;
  const int64_t start = (b * size.T * size.H + h) * N, step = size.H * N;  // of the first token, and to the next one
  const int64_t chunks = (size.T + kept.chunk - 1) / kept.chunk;
  const int mine = thread() / kWkv7Lanes;  // the row, and the column
  const bool writes = thread() % kWkv7Lanes == 0 && mine < N;
  states += head * kept.chunk * kPart * kThreads<kN> + thread();

  // The vectors of the tokens from `first` on; a thread loads one channel of one token.
  const auto share = [&](int64_t first) {
    const int t = thread() / kN, j = thread() % kN;
    const int64_t at = start + (first + t) * step + j;
    const bool exists = first + t < size.T && j < N;
    const auto read = [&](const Real* from) { return exists ? __ldg(from + at) : Real(0); };
    const Real kappa = read(in.kappa), a = read(in.a);
    __syncthreads();
    vectors.r[t][j] = read(in.r), vectors.w[t][j] = read(in.w);
    vectors.k[t][j] = read(in.k), vectors.v[t][j] = read(in.v);
    vectors.kappa[t][j] = kappa, vectors.a[t][j] = a, vectors.replaced[t][j] = kappa * a;
    vectors.removed[t][j] = read(kept.removed), vectors.dy[t][j] = read(grad.y);
    __syncthreads();
  };

  Real row[kPart], column[kPart];  // of G
#pragma unroll
  for (int m = 0; m < kPart; ++m) {
    row[m] = element(grad.state + head * N * N, N, mine, wkv7_place<Real>(m));
    column[m] = element(grad.state + head * N * N, N, wkv7_place<Real>(m), mine);
  }

  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kept.chunk, end = min(begin + kept.chunk, size.T);
    Real s[kPart];
#pragma unroll
    for (int m = 0; m < kPart; ++m)
      s[m] = element(kept.states + (head * chunks + chunk) * N * N, N, wkv7_place<Real>(m), mine);
    for (int64_t t = begin; t < end; ++t) {
      const int j = static_cast<int>(t % kWkv7Tokens);
      if (j == 0) share(t);
      const Real w = vectors.w[j][mine], replaced = vectors.replaced[j][mine], k = vectors.k[j][mine];
      Real* const before = states + (t - begin) * kPart * kThreads<kN>;
      Products<Real, 2> with_dy;
#pragma unroll
      for (int m = 0; m < kPart; ++m) {
        const int i = wkv7_place<Real>(m);
        before[m * kThreads<kN>] = s[m];
        s[m] = wkv7_update(s[m], w, vectors.removed[j][i], replaced, vectors.v[j][i], k);
        with_dy.add(m, s[m], vectors.dy[j][i]);
      }
      const Real dr = with_dy.total();
      if (writes) out.r[start + t * step + mine] = dr;
    }

    for (int64_t t = end - 1; t >= begin; --t) {
      const int j = static_cast<int>(t % kWkv7Tokens);
      if (j == kWkv7Tokens - 1 && t < end - 1) share(t - j);  // the last tokens' vectors are still there
      const int64_t at = start + t * step + mine;
      const Real* const before = states + (t - begin) * kPart * kThreads<kN>;
      Real* const du = removed_grads[t % 2];  // of the token before are read while these are written
      const Real dy = vectors.dy[j][mine];
      Products<Real, 2> with_k, with_replaced;
#pragma unroll
      for (int m = 0; m < kPart; ++m) {
        const int i = wkv7_place<Real>(m);
        row[m] = fused(dy, vectors.r[j][i], row[m]);
        with_k.add(m, row[m], vectors.k[j][i]);
        with_replaced.add(m, row[m], vectors.replaced[j][i]);
      }
      const Real dv = with_k.total(), own_du = -with_replaced.total();
      if (writes) out.v[at] = dv;
      if (thread() % kWkv7Lanes == 0) du[mine] = own_du;
#pragma unroll
      for (int m = 0; m < kPart; ++m)
        row[m] = fused(own_du, vectors.kappa[j][wkv7_place<Real>(m)], row[m] * vectors.w[j][wkv7_place<Real>(m)]);
      __syncthreads();

      const Real r = vectors.r[j][mine], w = vectors.w[j][mine], kappa = vectors.kappa[j][mine];
      Products<Real, 1> with_v, with_removed, with_state, with_du;
#pragma unroll
      for (int m = 0; m < kPart; ++m) {
        const int i = wkv7_place<Real>(m);
        const Real old = before[m * kThreads<kN>];
        column[m] = fused(vectors.dy[j][i], r, column[m]);
        with_v.add(m, column[m], vectors.v[j][i]);
        with_removed.add(m, column[m], vectors.removed[j][i]);
        with_state.add(m, column[m], old);
        with_du.add(m, old, du[i]);
        column[m] = fused(du[i], kappa, column[m] * w);
      }
      const Real dk = with_v.total(), db = -with_removed.total(), dw = with_state.total(), from_u = with_du.total();
      if (writes) {
        out.k[at] = dk, out.w[at] = dw;
        out.kappa[at] = fused(db, vectors.a[j][mine], from_u), out.a[at] = db * kappa;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kPart; ++m) {
    const int j = wkv7_place<Real>(m);
    if (mine < N && j < N) out.state[head * N * N + mine * N + j] = row[m];
  }
}

// The parts of `scratch`, in numbers.
struct Scratch {
  int64_t chunk, removed, kept, states;

  explicit Scratch(Wkv7Size size) : chunk(chunk_of(size.T)) {
    const int64_t heads = size.B * size.H, wide = size.N > 64 ? 128 : size.N > 32 ? 64 : 32;
    removed = heads * size.T * size.N;
    kept = heads * pieces(size.T, chunk) * size.N * size.N;
    states = heads * chunk * wide * wide;
  }
};

}  // namespace

int64_t wkv7_backward_scratch_numbers(Wkv7Size size) {
  const Scratch parts(size);
  return parts.removed + parts.kept + parts.states;
}

template <class Real>
cudaError_t wkv7_backward(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7OutputGrads<Real> grad, Wkv7InputGrads<Real> out,
                          Real* scratch, cudaStream_t stream) {
  const Scratch parts(size);
  Real* const removed = scratch;
  Real* const kept = removed + parts.removed;
  Real* const states = kept + parts.kept;
  const cudaError_t status = wkv7_keep<Real>(size, in, {kept, removed, parts.chunk}, stream);
  if (status != cudaSuccess) return status;
  return for_channels(size.N, [&](auto channels) {
    return launch(wkv7_backward_kernel<Real, channels>, grid_of(size.B * size.H), kThreads<channels>, 0, stream, size,
                  in, grad, out, {kept, removed, parts.chunk}, states);
  });
}

template cudaError_t wkv7_backward(Wkv7Size, Wkv7Inputs<float>, Wkv7OutputGrads<float>, Wkv7InputGrads<float>, float*,
                                   cudaStream_t);
template cudaError_t wkv7_backward(Wkv7Size, Wkv7Inputs<double>, Wkv7OutputGrads<double>, Wkv7InputGrads<double>,
                                   double*, cudaStream_t);

}  // namespace rwkv::cuda

// The gradients of wkv7, last token first.
//
// Let G be the gradient with respect to the state after a token, to which y has contributed. With u = S kappa and
// b = kappa a, where S is the state before the token and S' the one after it,
//   dr = S'^T dy    dv = G k    dk = G^T v    dw_j = sum over i of G_ij S_ij    du = -G b    db = -G^T u
//   dkappa = a db + S^T du      da = kappa db                                   G <- G diag(w) + du kappa^T
// Given S and u of all tokens, a row of G needs no other row, and it gives dv, du and the row of the state's gradient.
// Given du, a column of G needs no other column, and with that column of S it gives everything else. So there are three
// kernels: the forward pass, which keeps the state before each chunk of tokens, and u; then rows; then columns. The
// third computes the states of a chunk again, which need no sums as u is known, writes them to memory that only the
// same thread reads, and then processes the chunk's tokens, last token first.
#include "kernels/cuda/wkv7_lanes.cuh"

namespace rwkv::cuda {
namespace {

// About sqrt(T), so that the states before all chunks and those of one chunk are equally many.
int64_t chunk_of(int64_t T) {
  int64_t chunk = 16;
  while (chunk * chunk < T) chunk *= 2;
  return chunk;
}

// Vectors of some tokens: of all channels, and of the rows or columns of a block.
template <class Real, int kN>
using Whole = Real[kWkv7Tokens][kN];
template <class Real, int kN>
using Own = Real[kWkv7Tokens][Wkv7Part<Real, kN>::kRows];

// Reads the vectors of the tokens from `first` on. Calls whole(t, j, read) for all channels j, and own(t, j, read) for
// those of the block, counted from 0; read(v) is the number of v that belongs there, or 0 if it has none. All threads
// must call this.
template <class Real, int kN, class WholeOnes, class OwnOnes>
__device__ void share(Wkv7Size size, const Wkv7Slice<Wkv7Part<Real, kN>>& slice, int64_t first, const WholeOnes& whole,
                      const OwnOnes& own) {
  using Part = Wkv7Part<Real, kN>;
  const auto reading = [&](int t, int j) {
    const int64_t at = slice.start + (first + t) * slice.step + j;
    const bool exists = first + t < size.T && j < slice.N;
    return [=](const Real* from) { return exists ? __ldg(from + at) : Real(0); };
  };
  __syncthreads();
#pragma unroll
  for (int i = thread(); i < kWkv7Tokens * kN; i += Part::kThreads) whole(i / kN, i % kN, reading(i / kN, i % kN));
  const int t = thread() / Part::kRows, j = thread() % Part::kRows;
  if (t < kWkv7Tokens) own(t, j, reading(t, slice.first + j));
  __syncthreads();
}

// `removed_grads`: du, (B, T, H, N).
template <class Real, int kN>
__global__ void __launch_bounds__(Wkv7Part<Real, kN>::kThreads, 1)
    wkv7_rows_kernel(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7OutputGrads<Real> grad, Wkv7InputGrads<Real> out,
                     Real* __restrict__ removed_grads) {
  using Part = Wkv7Part<Real, kN>;
  constexpr int kPart = Part::kSize;
  __shared__ __align__(16) Whole<Real, kN> r, w, k, kappa, replaced;
  __shared__ Own<Real, kN> dys;
  const Wkv7Slice<Part> rows(size);
  const int N = rows.N, mine = rows.mine(), own = thread() / Part::kLanes;

  Real row[kPart];
#pragma unroll
  for (int m = 0; m < kPart; ++m) row[m] = element(grad.state + rows.head * N * N, N, mine, Part::place(m));
  for (int64_t t = size.T - 1; t >= 0; --t) {
    const int j = static_cast<int>(t % kWkv7Tokens);
    if (j == kWkv7Tokens - 1 || t == size.T - 1)
      share<Real, kN>(
          size, rows, t - j,
          [&](int to, int i, const auto& read) {
            r[to][i] = read(in.r), w[to][i] = read(in.w), k[to][i] = read(in.k), kappa[to][i] = read(in.kappa);
            replaced[to][i] = read(in.kappa) * read(in.a);
          },
          [&](int to, int i, const auto& read) { dys[to][i] = read(grad.y); });
    const Real dy = dys[j][own];
    Products<Real, kN, 2> with_k, with_replaced;
#pragma unroll
    for (int m = 0; m < kPart; ++m) {
      const int i = Part::place(m);
      row[m] = fused(dy, r[j][i], row[m]);
      with_k.add(m, row[m], k[j][i]);
      with_replaced.add(m, row[m], replaced[j][i]);
    }
    const Real dv = with_k.total(), du = -with_replaced.total();
    const int64_t at = rows.start + t * rows.step + mine;
    if (rows.writes()) out.v[at] = dv, removed_grads[at] = du;
#pragma unroll
    for (int m = 0; m < kPart; ++m) row[m] = fused(du, kappa[j][Part::place(m)], row[m] * w[j][Part::place(m)]);
  }
#pragma unroll
  for (int m = 0; m < kPart; ++m)
    if (const int j = Part::place(m); mine < N && j < N) out.state[rows.head * N * N + mine * N + j] = row[m];
}

// `states`: for each block (chunk, Part::kSize, Part::kThreads), its columns of the states of one chunk of tokens.
template <class Real, int kN>
__global__ void __launch_bounds__(Wkv7Part<Real, kN>::kThreads, 1)
    wkv7_columns_kernel(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7OutputGrads<Real> grad, Wkv7InputGrads<Real> out,
                        Wkv7Kept<const Real> kept, const Real* __restrict__ removed_grads, Real* __restrict__ states) {
  using Part = Wkv7Part<Real, kN>;
  constexpr int kPart = Part::kSize;
  __shared__ __align__(16) Whole<Real, kN> vs, removed, dy, du;
  __shared__ Own<Real, kN> rs, ws, ks, kappas, as;
  const Wkv7Slice<Part> columns(size);
  const int N = columns.N, mine = columns.mine(), own = thread() / Part::kLanes;
  const int64_t chunks = (size.T + kept.chunk - 1) / kept.chunk;
  states += blockIdx.x * kept.chunk * kPart * Part::kThreads + thread();
  const auto share_from = [&](int64_t first) {
    share<Real, kN>(
        size, columns, first,
        [&](int to, int i, const auto& read) {
          vs[to][i] = read(in.v), removed[to][i] = read(kept.removed);
          dy[to][i] = read(grad.y), du[to][i] = read(removed_grads);
        },
        [&](int to, int i, const auto& read) {
          rs[to][i] = read(in.r), ws[to][i] = read(in.w), ks[to][i] = read(in.k);
          kappas[to][i] = read(in.kappa), as[to][i] = read(in.a);
        });
  };

  Real column[kPart];  // of G
#pragma unroll
  for (int m = 0; m < kPart; ++m) column[m] = element(grad.state + columns.head * N * N, N, Part::place(m), mine);

  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kept.chunk, end = min(begin + kept.chunk, size.T);
    Real s[kPart];
#pragma unroll
    for (int m = 0; m < kPart; ++m)
      s[m] = element(kept.states + (columns.head * chunks + chunk) * N * N, N, Part::place(m), mine);
    for (int64_t t = begin; t < end; ++t) {
      const int j = static_cast<int>(t % kWkv7Tokens);
      if (j == 0) share_from(t);
      const Real w = ws[j][own], replaced = kappas[j][own] * as[j][own], k = ks[j][own];
      Real* const before = states + (t - begin) * kPart * Part::kThreads;
      Products<Real, kN, 2> with_dy;
#pragma unroll
      for (int m = 0; m < kPart; ++m) {
        const int i = Part::place(m);
        before[m * Part::kThreads] = s[m];
        s[m] = wkv7_update(s[m], w, removed[j][i], replaced, vs[j][i], k);
        with_dy.add(m, s[m], dy[j][i]);
      }
      const Real dr = with_dy.total();
      if (columns.writes()) out.r[columns.start + t * columns.step + mine] = dr;
    }

    for (int64_t t = end - 1; t >= begin; --t) {
      const int j = static_cast<int>(t % kWkv7Tokens);
      if (j == kWkv7Tokens - 1 && t < end - 1) share_from(t - j);  // the last tokens' vectors are still there
      const Real* const before = states + (t - begin) * kPart * Part::kThreads;
      const Real r = rs[j][own], w = ws[j][own], kappa = kappas[j][own];
      Products<Real, kN, 1> with_v, with_removed, with_state, with_du;
#pragma unroll
      for (int m = 0; m < kPart; ++m) {
        const int i = Part::place(m);
        const Real old = before[m * Part::kThreads];
        column[m] = fused(dy[j][i], r, column[m]);
        with_v.add(m, column[m], vs[j][i]);
        with_removed.add(m, column[m], removed[j][i]);
        with_state.add(m, column[m], old);
        with_du.add(m, old, du[j][i]);
        column[m] = fused(du[j][i], kappa, column[m] * w);
      }
      const Real dk = with_v.total(), db = -with_removed.total(), dw = with_state.total(), from_u = with_du.total();
      const int64_t at = columns.start + t * columns.step + mine;
      if (columns.writes()) {
        out.k[at] = dk, out.w[at] = dw;
        out.kappa[at] = fused(db, as[j][own], from_u), out.a[at] = db * kappa;
      }
    }
  }
}

// The parts of `scratch`, in numbers.
struct Scratch {
  int64_t chunk, removed, removed_grads, kept, states;

  explicit Scratch(Wkv7Size size) : chunk(chunk_of(size.T)) {
    const int64_t heads = size.B * size.H, wide = size.N > 64 ? 128 : size.N > 32 ? 64 : 32;
    removed = removed_grads = heads * size.T * size.N;
    kept = heads * pieces(size.T, chunk) * size.N * size.N;
    states = heads * chunk * wide * wide;
  }
};

}  // namespace

int64_t wkv7_backward_scratch_numbers(Wkv7Size size) {
  const Scratch parts(size);
  return parts.removed + parts.removed_grads + parts.kept + parts.states;
}

template <class Real>
cudaError_t wkv7_backward(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7OutputGrads<Real> grad, Wkv7InputGrads<Real> out,
                          Real* scratch, cudaStream_t stream) {
  const Scratch parts(size);
  Real* const removed = scratch;
  Real* const removed_grads = removed + parts.removed;
  Real* const kept = removed_grads + parts.removed_grads;
  Real* const states = kept + parts.kept;
  cudaError_t status = wkv7_keep<Real>(size, in, {kept, removed, parts.chunk}, stream);
  if (status != cudaSuccess) return status;
  return for_channels(size.N, [&](auto channels) {
    using Part = Wkv7Part<Real, channels>;
    status = launch_wkv7<Part>(wkv7_rows_kernel<Real, channels>, size, stream, in, grad, out, removed_grads);
    if (status != cudaSuccess) return status;
    return launch_wkv7<Part>(wkv7_columns_kernel<Real, channels>, size, stream, in, grad, out,
                             {kept, removed, parts.chunk}, removed_grads, states);
  });
}

template cudaError_t wkv7_backward(Wkv7Size, Wkv7Inputs<float>, Wkv7OutputGrads<float>, Wkv7InputGrads<float>, float*,
                                   cudaStream_t);
template cudaError_t wkv7_backward(Wkv7Size, Wkv7Inputs<double>, Wkv7OutputGrads<double>, Wkv7InputGrads<double>,
                                   double*, cudaStream_t);

}  // namespace rwkv::cuda

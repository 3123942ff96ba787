#include "kernels/cpu/wkv7.h"

#include <algorithm>

#include "kernels/cpu/wkv7_row.h"

namespace rwkv::cpu {
namespace {

// Rows of S are independent. A few of them are one unit of work for all T tokens, so that their numbers stay in the
// first-level cache, and share what a token's keys are loaded for.
constexpr int kRows = 8;

}  // namespace

// Not inlined, or the compiler could round differently in each place.
template <class Real>
__attribute__((noinline)) void wkv7_rows(const Wkv7Inputs<Real>& token, int64_t first, int64_t last, int64_t N,
                                         Real* state, Real* y) {
  for (int64_t i = first; i < last; ++i) {
    Real* const row = state + i * N;
    y[i] = updated(row, token, removed(row, token.kappa, N), token.v[i], N);
  }
}

template <class Real>
void wkv7(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Outputs<Real> out, const Run& run) {
  const auto [B, T, H, N] = size;
  const int64_t parts = (N + kRows - 1) / kRows;
  run(B * H * parts, 4 * kRows * N * T, [=](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t head = unit / parts, b = head / H, h = head % H;
      const int64_t first = unit % parts * kRows, last = std::min<int64_t>(N, first + kRows);
      Real* const state = out.state + head * N * N;
      std::copy(in.state + (head * N + first) * N, in.state + (head * N + last) * N, state + first * N);
      for (int64_t t = 0; t < T; ++t) {
        const int64_t at = ((b * T + t) * H + h) * N;
        const Wkv7Inputs<Real> token{in.r + at, in.w + at, in.k + at, in.v + at, in.kappa + at, in.a + at, nullptr};
        wkv7_rows(token, first, last, N, state, out.y + at);
      }
    }
  });
}

template void wkv7_rows(const Wkv7Inputs<float>&, int64_t, int64_t, int64_t, float*, float*);
template void wkv7(Wkv7Size, Wkv7Inputs<float>, Wkv7Outputs<float>, const Run&);
template void wkv7(Wkv7Size, Wkv7Inputs<double>, Wkv7Outputs<double>, const Run&);

}  // namespace rwkv::cpu

#include "kernels/cpu/wkv7.h"

#include <algorithm>

#include "kernels/cpu/lanes.h"

namespace rwkv::cpu {
namespace {

// Rows of S are independent. A few of them are one unit of work for all T tokens, so that their numbers stay in the
// first-level cache, and share what a token's keys are loaded for.
constexpr int kRows = 8;
// Partial sums over the keys. They are added in a fixed order, which no loop length nor thread changes.
constexpr int kLanes = kTileRows;

template <class Real>
using Sums = Real[kLanes];

template <class Real>
RWKV_INLINE Real total(const Sums<Real>& sums) {
  Real halves[kLanes];
  std::copy_n(sums, kLanes, halves);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) halves[i] += halves[i + width];
  return halves[0];
}

// sum of row * kappa
template <class Real>
RWKV_INLINE Real removed(const Real* __restrict row, const Real* __restrict kappa, int64_t N) {
  Sums<Real> sums{};
  int64_t j = 0;
  for (; j + kLanes <= N; j += kLanes) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) sums[i] += row[j + i] * kappa[j + i];
  }
  for (int i = 0; j + i < N; ++i) sums[i] += row[j + i] * kappa[j + i];
  return total(sums);
}

// row' = row * w - removed * kappa * a + v * k; returns the sum of row' * r
template <class Real>
RWKV_INLINE Real updated(Real* __restrict row, const Wkv7Inputs<Real>& at, Real removed, Real v, int64_t N) {
  const Real* const __restrict r = at.r;
  const Real* const __restrict w = at.w;
  const Real* const __restrict k = at.k;
  const Real* const __restrict kappa = at.kappa;
  const Real* const __restrict a = at.a;
  Sums<Real> sums{};
  int64_t j = 0;
  for (; j + kLanes <= N; j += kLanes) {
#pragma omp simd
    for (int i = 0; i < kLanes; ++i) {
      const Real next = row[j + i] * w[j + i] - removed * (kappa[j + i] * a[j + i]) + v * k[j + i];
      row[j + i] = next;
      sums[i] += next * r[j + i];
    }
  }
  for (int i = 0; j + i < N; ++i) {
    const Real next = row[j + i] * w[j + i] - removed * (kappa[j + i] * a[j + i]) + v * k[j + i];
    row[j + i] = next;
    sums[i] += next * r[j + i];
  }
  return total(sums);
}

}  // namespace

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
        for (int64_t i = first; i < last; ++i) {
          Real* const row = state + i * N;
          out.y[at + i] = updated(row, token, removed(row, token.kappa, N), token.v[i], N);
        }
      }
    }
  });
}

template void wkv7(Wkv7Size, Wkv7Inputs<float>, Wkv7Outputs<float>, const Run&);
template void wkv7(Wkv7Size, Wkv7Inputs<double>, Wkv7Outputs<double>, const Run&);

}  // namespace rwkv::cpu

// One token of one row of a head's matrix S in the RWKV-7 recurrence; rows are independent. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/wkv7.h"

namespace rwkv::cpu {

// Partial sums over the keys. They are added in a fixed order, which no loop length nor thread changes.
constexpr int kKeyLanes = kTileRows;

template <class Real>
using KeySums = Real[kKeyLanes];

template <class Real>
RWKV_INLINE Real total(const KeySums<Real>& sums) {
  Real halves[kKeyLanes];
  std::copy_n(sums, kKeyLanes, halves);
  for (int width = kKeyLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) halves[i] += halves[i + width];
  return halves[0];
}

// sum of row * kappa
template <class Real>
RWKV_INLINE Real removed(const Real* __restrict row, const Real* __restrict kappa, int64_t N) {
  KeySums<Real> sums{};
  int64_t j = 0;
  for (; j + kKeyLanes <= N; j += kKeyLanes) {
#pragma omp simd
    for (int i = 0; i < kKeyLanes; ++i) sums[i] += row[j + i] * kappa[j + i];
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
  KeySums<Real> sums{};
  int64_t j = 0;
  for (; j + kKeyLanes <= N; j += kKeyLanes) {
#pragma omp simd
    for (int i = 0; i < kKeyLanes; ++i) {
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

}  // namespace rwkv::cpu

// One token of one row of a head's matrix S in the RWKV-7 recurrence; rows are independent. Torch-free.
#pragma once

#include <cstring>

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/wkv7.h"

namespace rwkv::cpu {

// Partial sums over the keys. They are added in a fixed order, which no loop length nor thread changes.
constexpr int kKeyLanes = kTileRows;

template <class Real>
using KeySums = Real[kKeyLanes];

// The lower half of a vector, or of the partial sums, and the upper one, added.
template <class Half, class Whole>
RWKV_INLINE Half halved(const Whole& whole) {
  static_assert(sizeof(Whole) == 2 * sizeof(Half));
  Half low, high;
  memcpy(&low, &whole, sizeof low);
  memcpy(&high, reinterpret_cast<const char*>(&whole) + sizeof low, sizeof high);
  return low + high;
}

// In vectors, because a loop stores and loads the sums for each width.
template <class Real>
RWKV_INLINE Real total(const KeySums<Real>& sums) {
  typedef Real Eight __attribute__((vector_size(8 * sizeof(Real))));
  typedef Real Four __attribute__((vector_size(4 * sizeof(Real))));
  typedef Real Two __attribute__((vector_size(2 * sizeof(Real))));
  return halved<Real>(halved<Two>(halved<Four>(halved<Eight>(sums))));
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

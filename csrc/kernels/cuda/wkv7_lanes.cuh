// Code shared by wkv7 and wkv7_backward: how a head's matrix is divided among threads. Torch-free; device code.
//
// Four adjacent lanes share a row of the matrix, or a column, so that a thread has few enough numbers for registers and
// a sequence enough threads. Each lane has every fourth group of 16 bytes: the four read 64 adjacent bytes of a vector
// in shared memory, which are in different banks. Kernels are compiled for 32, 64 and 128 channels; a head of N
// channels has the next larger number, kN, and channels from N on are zero.
#pragma once

#include <type_traits>

#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wkv7.h"

namespace rwkv::cuda {

constexpr int kWkv7Lanes = 4;
constexpr int kWkv7Tokens = 4;  // whose vectors a block has in shared memory at once

// The number of a row or column that a thread has.
template <int kN>
constexpr int kWkv7Part = kN / kWkv7Lanes;

// The place in its row or column of the i-th number that this thread has.
template <class Real>
__device__ inline int wkv7_place(int i) {
  constexpr int kWide = 16 / sizeof(Real);
  return (i / kWide * kWkv7Lanes + thread() % kWkv7Lanes) * kWide + i % kWide;
}

// Element (i, j) of a matrix (N, N), or 0 if it has none. No load depends on a branch, so that all are in flight at
// once.
template <class Real>
__device__ inline Real element(const Real* matrix, int N, int i, int j) {
  const bool exists = i < N && j < N;
  const Real found = __ldg(matrix + (exists ? i * N + j : 0));
  return exists ? found : Real(0);
}

__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

// The sum of what the lanes of one row or column have.
template <class Real>
__device__ inline Real over_lanes(Real sum) {
#pragma unroll
  for (int mask = 1; mask < kWkv7Lanes; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
  return sum;
}

// A sum of products over this thread's part, in n sums, so that an addition need not wait for the one before it.
template <class Real, int n>
struct Products {
  Real sums[n] = {};

  __device__ void add(int i, Real a, Real b) { sums[i % n] = fused(a, b, sums[i % n]); }
  __device__ Real total() const {
    Real sum = sums[0];
#pragma unroll
    for (int i = 1; i < n; ++i) sum += sums[i];
    return over_lanes(sum);
  }
};

// One number of a row or column of the state after a token, where `removed` is the product of its row with kappa.
template <class Real>
__device__ inline Real wkv7_update(Real s, Real w, Real removed, Real replaced, Real v, Real k) {
  return fused(v, k, fused(-removed, replaced, s * w));
}

// Calls fn with the std::integral_constant<int, kN> for N channels.
template <class Function>
cudaError_t for_channels(int64_t N, const Function& fn) {
  if (N > kWkv7MostChannels) return cudaErrorInvalidValue;
  if (N > 64) return fn(std::integral_constant<int, 128>{});
  if (N > 32) return fn(std::integral_constant<int, 64>{});
  return fn(std::integral_constant<int, 32>{});
}

// What the backward pass keeps of the forward pass: the state before every `chunk` tokens, (B, H, chunks, N, N), and
// the products of states and kappa, (B, T, H, N).
template <class Real>
struct Wkv7Kept {
  Real *states, *removed;
  int64_t chunk;  // a multiple of kWkv7Tokens
};

// The forward pass that keeps them, without outputs.
template <class Real>
cudaError_t wkv7_keep(Wkv7Size size, Wkv7Inputs<Real> in, Wkv7Kept<Real> kept, cudaStream_t stream);

}  // namespace rwkv::cuda

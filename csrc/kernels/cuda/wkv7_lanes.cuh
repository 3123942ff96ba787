// Code shared by wkv7 and wkv7_backward: how a head's matrix is divided among threads. Torch-free; device code.
//
// Adjacent lanes share a row of the matrix, or a column, so that a thread has few enough numbers for registers, at most
// 64 bytes, and a sequence enough threads. Each of n lanes has every n-th group of 16 bytes: together they read
// adjacent bytes of a vector in shared memory, which are in different banks. A block has 16 or 32 rows or columns; so
// few, because a single sequence has only as many blocks as heads, times two to eight. Kernels are compiled for 32, 64
// and 128 channels; a head of N channels has the next larger number, kN, and channels from N on are zero.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/batch.cuh"
#include "kernels/cuda/warp.cuh"
#include "kernels/cuda/wkv7.h"

namespace rwkv::cuda {

constexpr int kWkv7Tokens = 4;  // whose vectors a block has in shared memory at once

// The numbers of a row or column that a thread has.
template <class Real, int kN>
struct Wkv7Part {
  static constexpr int kLanes = std::max<int>(kN * sizeof(Real) / 64, 4), kSize = kN / kLanes;
  static constexpr int kRows = kLanes > 8 ? 16 : 32, kThreads = kRows * kLanes;  // of a block

  // The place in its row or column of this thread's i-th number.
  static __device__ int place(int i) {
    constexpr int kWide = 16 / sizeof(Real);
    return (i / kWide * kLanes + thread() % kLanes) * kWide + i % kWide;
  }

  // The sum of what the lanes of one row or column have.
  static __device__ Real over_lanes(Real sum) {
#pragma unroll
    for (int mask = 1; mask < kLanes; mask *= 2) sum += __shfl_xor_sync(kAllLanes, sum, mask);
    return sum;
  }
};

// Element (i, j) of a matrix (N, N), or 0 if it has none. No load depends on a branch, so that all are in flight at
// once.
template <class Real>
__device__ inline Real element(const Real* matrix, int N, int i, int j) {
  const bool exists = i < N && j < N;
  const Real found = __ldg(matrix + (exists ? i * N + j : 0));
  return exists ? found : Real(0);
}

// The rows or columns that a block has.
template <class Part>
struct Wkv7Slice {
  int N, first;
  int64_t head, start, step;  // the place of the first token in vectors (B, T, H, N), and from one to the next

  __device__ explicit Wkv7Slice(Wkv7Size size) : N(static_cast<int>(size.N)) {
    const int64_t parts = (N + Part::kRows - 1) / Part::kRows;
    head = blockIdx.x / parts, first = static_cast<int>(blockIdx.x % parts) * Part::kRows;
    start = (head / size.H * size.T * size.H + head % size.H) * N, step = size.H * N;
  }
  // That of this thread, and whether this thread writes what belongs to it.
  __device__ int mine() const { return first + thread() / Part::kLanes; }
  __device__ bool writes() const { return thread() % Part::kLanes == 0 && mine() < N; }
};

// Launches a kernel's blocks. blockIdx.x counts those of a head, then heads, then sequences, of which blockIdx.y could
// have 65535 only.
template <class Part, class... Parameters>
cudaError_t launch_wkv7(void (*kernel)(Wkv7Size, Parameters...), Wkv7Size size, cudaStream_t stream,
                        typename AsDeclared<Parameters>::type... arguments) {
  const dim3 grid = grid_of(size.B * size.H * pieces(size.N, Part::kRows));
  return launch(kernel, grid, Part::kThreads, 0, stream, size, arguments...);
}

__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

// A sum of products over this thread's part, in n sums, so that an addition need not wait for the one before it.
template <class Real, int kN, int n>
struct Products {
  Real sums[n] = {};

  __device__ void add(int i, Real a, Real b) { sums[i % n] = fused(a, b, sums[i % n]); }
  __device__ Real total() const {
    Real sum = sums[0];
#pragma unroll
    for (int i = 1; i < n; ++i) sum += sums[i];
    return Wkv7Part<Real, kN>::over_lanes(sum);
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

// Divides the rows of a batch into groups that share each load of weights. Torch-free.
//
// Kernels are compiled for 1, 2, 4, 8 and 16 rows, and do the same arithmetic in the same order for all of these. More
// than 16 rows are divided into groups, one per blockIdx.y. Missing rows are zero and are not written.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/tiles.h"

namespace rwkv::cuda {

constexpr int kMostRows = 16;

// Calls fn with the smallest std::integral_constant<int, batch> that holds B rows, or the largest, `most`.
template <int most = kMostRows, class Function>
cudaError_t for_batch(int64_t B, const Function& fn) {
  if constexpr (most > 1)
    if (B <= most / 2) return for_batch<most / 2>(B, fn);
  return fn(std::integral_constant<int, most>{});
}

// The number of blocks of this many threads that a multiprocessor should hold at once, for __launch_bounds__. With few
// rows a kernel is memory-bound, and 768 threads keep enough loads in flight; without the bound, ptxas would use more
// registers per thread. With int4 weights a load takes twice the registers, so 512 threads have as many in flight.
template <class Weight, int batch, int threads>
constexpr int kResident = batch > 4 ? 1 : (std::is_same_v<Weight, Int4> ? 512 : 768) / threads;

inline int64_t pieces(int64_t n, int64_t each) { return (n + each - 1) / each; }

inline dim3 grid_of(int64_t x, int64_t y = 1) { return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)); }

// The rows of one group, that of blockIdx.y.
struct Group {
  int64_t first;
  int count;

  template <int batch>
  static __device__ Group mine(int64_t B) {
    const int64_t first = static_cast<int64_t>(blockIdx.y) * batch, left = B - first;
    return {first, static_cast<int>(left < batch ? left : batch)};
  }
};

}  // namespace rwkv::cuda

// Converts matrices to tiles (kernels/tiles.h) and back. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tiles.h"

namespace rwkv::cuda {

// matrix (N, K) row-major -> tiles, padded with zeros. Tiles begin at a multiple of 4 bytes.
template <class Weight>
cudaError_t tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles, cudaStream_t stream);

// The tiles of several matrices of one size.
constexpr int kMostAlike = 3;
template <class Weight>
struct Alike {
  const Weight* tiles[kMostAlike];
  int count;  // at most kMostAlike
};

// all.count matrices, row-major, one after another.
template <class Weight>
cudaError_t untile_alike(const Alike<Weight>& all, int64_t N, int64_t K, Weight* matrices, cudaStream_t stream);

template <class Weight>
cudaError_t untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix, cudaStream_t stream);

}  // namespace rwkv::cuda

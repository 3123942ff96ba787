// rwkv_engine::tile, untile and linear on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/linear.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/tiles.h"

namespace rwkv {
namespace {

struct LinearOnCuda {
  const c10::cuda::CUDAGuard guard;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  explicit LinearOnCuda(at::Device device) : guard(device) {}

  template <class Weight>
  void tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles) const {
    C10_CUDA_CHECK(cuda::tile(matrix, N, K, tiles, stream));
  }
  template <class Weight>
  void untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix) const {
    C10_CUDA_CHECK(cuda::untile(tiles, N, K, matrix, stream));
  }
  void linear(const Tensor& x, const Matrix& matrix, const Tensor& y) const {
    C10_CUDA_CHECK(cuda::linear(x.const_data_ptr<float>(), matrix, x.size(0), y.data_ptr<float>(), stream));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("tile", &tile<LinearOnCuda>);
  m.impl("untile", &untile<LinearOnCuda>);
  m.impl("linear", &linear<LinearOnCuda>);
}

}  // namespace rwkv

// rwkv_engine::tile, untile, untile_alike and linear on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
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

Tensor untile_alike(at::TensorList tiles, int64_t outputs, int64_t inputs) {
  static constexpr char op[] = "rwkv_engine::untile_alike";
  const auto n = static_cast<int64_t>(tiles.size());
  TORCH_CHECK(0 < n && n <= cuda::kMostAlike, op, ": tiles: expected 1 to ", cuda::kMostAlike, " matrices, got ", n);
  const Tensor& first = tiles[0];
  for (const Tensor& matrix : tiles) {
    check_tiles(op, "tiles", matrix, outputs, inputs, first.device());
    TORCH_CHECK(matrix.scalar_type() == first.scalar_type(), op, ": tiles: expected ", first.scalar_type(),
                " as the first, got ", matrix.scalar_type());
  }
  Tensor weights = at::empty({n, outputs, inputs}, first.options());
  const LinearOnCuda on(first.device());
  for_tiled(op, "tiles", first, [&]<class Weight>(Weight) {
    cuda::Alike<Weight> all{{}, static_cast<int>(n)};
    for (int64_t i = 0; i < n; ++i) all.tiles[i] = static_cast<const Weight*>(tiles[i].const_data_ptr());
    C10_CUDA_CHECK(cuda::untile_alike(all, outputs, inputs, static_cast<Weight*>(weights.data_ptr()), on.stream));
  });
  return weights;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("tile", &tile<LinearOnCuda>);
  m.impl("untile", &untile<LinearOnCuda>);
  m.impl("untile_alike", &untile_alike);
  m.impl("linear", &linear<LinearOnCuda>);
}

}  // namespace rwkv

// rwkv_engine::quantised_product on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/weights.h"
#include "kernels/cuda/quantised_product.h"

namespace rwkv {
namespace {

using at::Tensor;

Tensor quantised_product(const Tensor& x, const Tensor& powers, const Tensor& tiles, int64_t outputs,
                         const Tensor& scales) {
  static constexpr char op[] = "rwkv_engine::quantised_product";
  const at::Device device = x.device();
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == at::kHalf && x.size(1) % 8 == 0, op,
              ": x: expected float16 of shape (M, K), K a multiple of 8, got ", x.scalar_type(), " of shape ",
              x.sizes());
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor rows = x.contiguous(), of_rows = float_argument(op, "powers", powers, {M, 1}, device);
  TORCH_CHECK(reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0, op,
              ": x: expected memory that begins at a multiple of 16 bytes");
  const Matrix matrix = tiles_argument(op, "tiles", tiles, outputs, K, scales, device);
  TORCH_CHECK(matrix.columns, op, ": tiles: expected int8 or uint8 (int4), got ", tiles.scalar_type());
  const c10::cuda::CUDAGuard guard(device);
  Tensor y = at::empty({M, outputs}, of_rows.options());
  C10_CUDA_CHECK(cuda::quantised_product(static_cast<const Float16*>(rows.const_data_ptr()),
                                         of_rows.const_data_ptr<float>(), matrix, M, y.data_ptr<float>(),
                                         c10::cuda::getCurrentCUDAStream()));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("quantised_product", &quantised_product); }

}  // namespace rwkv

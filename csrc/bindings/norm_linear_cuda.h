// rwkv_engine::norm_linear on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/weights.h"
#include "kernels/cuda/norm_linear.h"

namespace rwkv {
namespace {

using at::Tensor;

Tensor norm_linear(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps, const Tensor& tiles,
                   int64_t outputs, const Scales& scales) {
  static constexpr char op[] = "rwkv_engine::norm_linear";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, K), got ", x.sizes());
  const at::Device device = x.device();
  const int64_t B = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {B, K}, device),
               weight = float_argument(op, "ln_weight", ln_weight, {K}, device),
               bias = float_argument(op, "ln_bias", ln_bias, {K}, device);
  const LayerNorm norm{weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)};
  const Matrix matrix = tiles_argument(op, "tiles", tiles, outputs, K, scales, device);
  const c10::cuda::CUDAGuard guard(device);
  const Tensor normalised = at::empty({B > cuda::kNormalisedByBlocks ? B : 0, K}, x.options());
  Tensor y = at::empty({B, outputs}, x.options());
  C10_CUDA_CHECK(cuda::norm_linear(rows.const_data_ptr<float>(), norm, matrix, B, normalised.data_ptr<float>(),
                                   y.data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("norm_linear", &norm_linear); }

}  // namespace rwkv

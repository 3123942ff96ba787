// rwkv_engine::scale_rows on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "bindings/weights.h"
#include "kernels/cuda/scale_rows.h"

namespace rwkv {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> scale_rows(const Tensor& x, const std::optional<Tensor>& columns) {
  static constexpr char op[] = "rwkv_engine::scale_rows";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (M, K), got ", x.sizes());
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {M, K}, x.device());
  const std::optional<Tensor> scales =
      columns ? std::optional(float_argument(op, "columns", *columns, {K}, x.device())) : std::nullopt;
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor halves = at::empty({M, K}, rows.options().dtype(at::kHalf)), powers = at::empty({M, 1}, rows.options());
  C10_CUDA_CHECK(cuda::scale_rows(rows.const_data_ptr<float>(), scales ? scales->const_data_ptr<float>() : nullptr, M,
                                  K, static_cast<uint16_t*>(halves.data_ptr()), powers.data_ptr<float>(),
                                  c10::cuda::getCurrentCUDAStream()));
  return {halves, powers};
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("scale_rows", &scale_rows); }

}  // namespace rwkv

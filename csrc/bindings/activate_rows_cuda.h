// rwkv_engine::activate_rows and residual_rows on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "bindings/weights.h"
#include "kernels/cuda/activate_rows.h"

namespace rwkv {
namespace {

using at::Tensor;

// The pointer of an argument that may be left out.
inline const float* pointer_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

std::tuple<Tensor, Tensor> activate_rows(const Tensor& x, const std::optional<Tensor>& gate, at::ScalarType dtype) {
  static constexpr char op[] = "rwkv_engine::activate_rows";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (M, K), got ", x.sizes());
  TORCH_CHECK(dtype == at::kHalf || dtype == at::kBFloat16, op, ": dtype: expected float16 or bfloat16, got ", dtype);
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor in = float_argument(op, "x", x, {M, K}, x.device());
  const std::optional<Tensor> gates =
      gate ? std::optional(float_argument(op, "gate", *gate, {M, K}, x.device())) : std::nullopt;
  const c10::cuda::CUDAGuard guard(x.device());
  Tensor rows = at::empty({M, K}, in.options().dtype(dtype)), powers = at::empty({M, 1}, in.options());
  const auto launch = [&]<class Number>(Number) {
    C10_CUDA_CHECK(cuda::activate_rows(in.const_data_ptr<float>(), pointer_of(gates), M, K,
                                       static_cast<Number*>(rows.data_ptr()), powers.data_ptr<float>(),
                                       c10::cuda::getCurrentCUDAStream()));
  };
  dtype == at::kHalf ? launch(Float16{}) : launch(Bfloat16{});
  return {rows, powers};
}

Tensor residual_rows(const Tensor& x, const std::optional<Tensor>& gate, const Tensor& y, const Tensor& powers) {
  static constexpr char op[] = "rwkv_engine::residual_rows";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (M, K), got ", x.sizes());
  const at::Device device = x.device();
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor base = float_argument(op, "x", x, {M, K}, device), in = float_argument(op, "y", y, {M, K}, device),
               scales = float_argument(op, "powers", powers, {M, 1}, device);
  const std::optional<Tensor> gates =
      gate ? std::optional(float_argument(op, "gate", *gate, {M, K}, device)) : std::nullopt;
  const c10::cuda::CUDAGuard guard(device);
  Tensor out = at::empty({M, K}, base.options());
  C10_CUDA_CHECK(cuda::residual_rows(base.const_data_ptr<float>(), pointer_of(gates), in.const_data_ptr<float>(),
                                     scales.const_data_ptr<float>(), M, K, out.data_ptr<float>(),
                                     c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("activate_rows", &activate_rows);
  m.impl("residual_rows", &residual_rows);
}

}  // namespace rwkv

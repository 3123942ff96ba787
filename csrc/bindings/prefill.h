// Code shared by the bindings of ln_shift, squared_relu_ and gate_residual: check arguments, allocate, call the kernel.
//
// Device(device) has the kernels of these names.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <optional>
#include <tuple>

#include "bindings/weights.h"
#include "kernels/layer_norm.h"

namespace rwkv {

using at::Tensor;

// ln_shift whose mixed rows have this dtype, which must be one that the device's kernel writes.
template <class Device>
std::tuple<Tensor, Tensor> ln_shift_as(const char* op, const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias,
                                       double eps, const Tensor& mixes, const Tensor& shift, at::ScalarType dtype) {
  TORCH_CHECK(x.dim() == 3 && x.size(1) > 0, op, ": x: expected shape (B, T, C) with T > 0, got ", x.sizes());
  TORCH_CHECK(mixes.dim() == 2, op, ": mixes: expected shape (M, C), got ", mixes.sizes());
  const at::Device device = x.device();
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2), M = mixes.size(0);
  const Tensor rows = float_argument(op, "x", x, {B, T, C}, device),
               weight = float_argument(op, "ln_weight", ln_weight, {C}, device),
               bias = float_argument(op, "ln_bias", ln_bias, {C}, device),
               mix = float_argument(op, "mixes", mixes, {M, C}, device),
               before = float_argument(op, "shift", shift, {B, C}, device);
  Tensor mixed = at::empty({M, B, T, C}, rows.options().dtype(dtype)), last = at::empty({B, C}, rows.options());
  const LnShift all{B,
                    T,
                    C,
                    M,
                    rows.const_data_ptr<float>(),
                    {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)},
                    mix.const_data_ptr<float>(),
                    before.const_data_ptr<float>(),
                    dtype == at::kFloat ? mixed.data_ptr<float>() : nullptr,
                    last.data_ptr<float>()};
  Device(device).ln_shift(all, mixed);
  return {mixed, last};
}

template <class Device>
std::tuple<Tensor, Tensor> ln_shift(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                                    const Tensor& mixes, const Tensor& shift) {
  return ln_shift_as<Device>("rwkv_engine::ln_shift", x, ln_weight, ln_bias, eps, mixes, shift, at::kFloat);
}

template <class Device>
void squared_relu(const Tensor& k) {
  static constexpr char op[] = "rwkv_engine::squared_relu_";
  check_float(op, "k", k, k.device());
  TORCH_CHECK(k.is_non_overlapping_and_dense(), op, ": k: expected memory without gaps, got shape ", k.sizes(),
              " with strides ", k.strides(), "; pass k.contiguous()");
  Device(k.device()).squared_relu(k.data_ptr<float>(), k.numel());
}

template <class Device>
Tensor gate_residual(const std::optional<Tensor>& x, const Tensor& r, const Tensor& y) {
  static constexpr char op[] = "rwkv_engine::gate_residual";
  const at::Device device = r.device();
  const Tensor gate = float_argument(op, "r", r, r.sizes(), device), in = float_argument(op, "y", y, r.sizes(), device);
  const std::optional<Tensor> base = x ? std::optional(float_argument(op, "x", *x, r.sizes(), device)) : std::nullopt;
  Tensor out = at::empty_like(gate);
  Device(device).gate_residual(base ? base->const_data_ptr<float>() : nullptr, gate.const_data_ptr<float>(),
                               in.const_data_ptr<float>(), gate.numel(), out.data_ptr<float>());
  return out;
}

}  // namespace rwkv

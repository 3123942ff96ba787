// rwkv_engine::wkv7_inputs and wkv7_gated on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "bindings/parallel.h"
#include "bindings/weights.h"
#include "kernels/cpu/wkv7_gated.h"
#include "kernels/cpu/wkv7_inputs.h"

namespace rwkv {
namespace {

using at::Tensor;

// In the order of `ops.wkv7_inputs.Gates7`.
constexpr int64_t kGates7 = 13;

cpu::Gates7 gates7_argument(const char* op, at::TensorList p, int64_t C, int64_t A) {
  TORCH_CHECK(static_cast<int64_t>(p.size()) == kGates7, op, ": expected ", kGates7, " parameters, got ", p.size());
  const at::Device cpu(at::kCPU);
  const auto vector = [&](const char* name, const Tensor& tensor) {
    TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, ": expected it contiguous");
    return float_argument(op, name, tensor, {A}, cpu).const_data_ptr<float>();
  };
  const auto low_rank = [&](const char* first_name, const Tensor& first, const char* second_name,
                            const Tensor& second) {
    TORCH_CHECK(first.dim() == 5 && first.is_floating_point(), op, ": ", first_name, ": expected tiles of floats, got ",
                first.scalar_type(), " of shape ", first.sizes());
    const int64_t rank = first.size(0) * kTileRows;
    return LowRank{tiles_argument(op, first_name, first, rank, C, {}, cpu),
                   tiles_argument(op, second_name, second, A, rank, {}, cpu)};
  };
  const bool mixes_values = p[2].numel() > 0;
  const Matrix none{Format::fp32, nullptr, 0, 0, nullptr, nullptr};
  return {.C = C,
          .A = A,
          .w0 = vector("w0", p[0]),
          .a0 = vector("a0", p[1]),
          .v0 = mixes_values ? vector("v0", p[2]) : nullptr,
          .k_k = vector("k_k", p[3]),
          .k_a = vector("k_a", p[4]),
          .w = low_rank("w1", p[5], "w2", p[6]),
          .a = low_rank("a1", p[7], "a2", p[8]),
          .g = low_rank("g1", p[9], "g2", p[10]),
          .v = mixes_values ? low_rank("v1", p[11], "v2", p[12]) : LowRank{none, none}};
}

using Wkv7InputTensors = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Wkv7InputTensors wkv7_inputs(const Tensor& mixed, const Tensor& k, const Tensor& v, const std::optional<Tensor>& first,
                             int64_t head_size, at::TensorList parameters) {
  static constexpr char op[] = "rwkv_engine::wkv7_inputs";
  TORCH_CHECK(mixed.dim() == 3 && mixed.size(0) == kMixes7, op, ": mixed: expected shape (", kMixes7, ", M, C), got ",
              mixed.sizes());
  const at::Device cpu(at::kCPU);
  const int64_t M = mixed.size(1), C = mixed.size(2), A = k.size(-1);
  TORCH_CHECK(head_size > 0 && A % head_size == 0, op, ": head_size: expected a divisor of ", A, ", got ", head_size);
  const Tensor rows = float_argument(op, "mixed", mixed, {kMixes7, M, C}, cpu),
               key = float_argument(op, "k", k, {M, A}, cpu), value = float_argument(op, "v", v, {M, A}, cpu);
  const cpu::Gates7 gates = gates7_argument(op, parameters, C, A);
  TORCH_CHECK(first || !gates.mixes_values(), op, ": first: a layer that mixes values needs those of layer 0");
  const Tensor of_first = gates.mixes_values() ? float_argument(op, "first", *first, {M, A}, cpu) : Tensor();
  Tensor w = at::empty_like(key), new_k = at::empty_like(key), new_v = at::empty_like(key), kappa = at::empty_like(key),
         a = at::empty_like(key), gate = at::empty_like(key);
  const cpu::Rows7 out{.key = key.const_data_ptr<float>(),
                       .value = value.const_data_ptr<float>(),
                       .w = w.data_ptr<float>(),
                       .k = new_k.data_ptr<float>(),
                       .v = new_v.data_ptr<float>(),
                       .kappa = kappa.data_ptr<float>(),
                       .a = a.data_ptr<float>(),
                       .gate = gate.data_ptr<float>(),
                       .first = of_first.defined() ? of_first.data_ptr<float>() : new_v.data_ptr<float>()};
  cpu::wkv7_inputs({M, head_size, gates, rows.const_data_ptr<float>(), out}, torch_threads);
  return {w, new_k, new_v, kappa, a, gate};
}

Tensor wkv7_gated(const Tensor& y, const Tensor& r, const Tensor& k, const Tensor& v, const Tensor& gate,
                  const Tensor& r_k, const Tensor& ln_weight, const Tensor& ln_bias) {
  static constexpr char op[] = "rwkv_engine::wkv7_gated";
  TORCH_CHECK(y.dim() == 2, op, ": y: expected shape (M, A), got ", y.sizes());
  TORCH_CHECK(r_k.dim() == 2 && r_k.numel() == y.size(1), op, ": r_k: expected shape (H, N) with ", y.size(1),
              " numbers, got ", r_k.sizes());
  const at::Device cpu(at::kCPU);
  const int64_t M = y.size(0), A = y.size(1);
  const auto rows = [&](const char* name, const Tensor& tensor) {
    return float_argument(op, name, tensor, {M, A}, cpu);
  };
  const Tensor in = rows("y", y), own_r = rows("r", r), own_k = rows("k", k), own_v = rows("v", v),
               own_gate = rows("gate", gate), bonus = float_argument(op, "r_k", r_k, r_k.sizes(), cpu),
               weight = float_argument(op, "ln_weight", ln_weight, {A}, cpu),
               bias = float_argument(op, "ln_bias", ln_bias, {A}, cpu);
  Tensor out = at::empty_like(in);
  cpu::wkv7_gated({.M = M,
                   .H = r_k.size(0),
                   .N = r_k.size(1),
                   .r = own_r.const_data_ptr<float>(),
                   .k = own_k.const_data_ptr<float>(),
                   .v = own_v.const_data_ptr<float>(),
                   .gate = own_gate.const_data_ptr<float>(),
                   .r_k = bonus.const_data_ptr<float>(),
                   .norm = {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), kGroupNorm7Eps},
                   .y = in.const_data_ptr<float>(),
                   .out = out.data_ptr<float>()},
                  torch_threads);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("wkv7_inputs", &wkv7_inputs);
  m.impl("wkv7_gated", &wkv7_gated);
}

}  // namespace rwkv

// Code shared by the bindings of both mixing steps: check arguments, allocate, fill in the kernel's arguments.
//
// Device::launch(op, step, S, x) runs a TimeMixing4Step or ChannelMixing4Step over a state of S rows.
#pragma once

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>

#include <array>
#include <optional>

#include "bindings/weights.h"
#include "kernels/mixing4_steps.h"

namespace rwkv {

using at::Tensor;
using Slots = std::optional<Tensor>;

using ScalesList = c10::List<Scales>;

// The scales of a step's `n` matrices, which may have different formats; an empty list means that none has scales.
template <size_t n>
std::array<Scales, n> scales_argument(const char* op, const ScalesList& scales) {
  TORCH_CHECK(scales.empty() || scales.size() == n, op, ": scales: expected none or those of ", n, " matrices, got ",
              scales.size());
  std::array<Scales, n> of_matrix{};
  for (size_t i = 0; i < scales.size(); ++i) of_matrix[i] = scales.get(i);
  return of_matrix;
}

template <class Device>
Tensor time_mixing4_step(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                         const Tensor& mix_k, const Tensor& mix_v, const Tensor& mix_r, const Tensor& decay,
                         const Tensor& first, const Tensor& key, const Tensor& value, const Tensor& receptance,
                         const Tensor& output, const Tensor& shift, const Tensor& num, const Tensor& den,
                         const Tensor& max, const Slots& slots, const ScalesList& scales) {
  static constexpr char op[] = "rwkv_engine::time_mixing4_step";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, C), got ", x.sizes());
  TORCH_CHECK(decay.dim() == 1, op, ": decay: expected shape (A,), got ", decay.sizes());
  const at::Device device = x.device();
  const int64_t B = x.size(0), C = x.size(1), A = decay.size(0), S = slots ? shift.size(0) : B;
  const Tensor rows = float_argument(op, "x", x, {B, C}, device),
               weight = float_argument(op, "ln_weight", ln_weight, {C}, device),
               bias = float_argument(op, "ln_bias", ln_bias, {C}, device),
               mk = float_argument(op, "mix_k", mix_k, {C}, device),
               mv = float_argument(op, "mix_v", mix_v, {C}, device),
               mr = float_argument(op, "mix_r", mix_r, {C}, device),
               w = float_argument(op, "decay", decay, {A}, device), u = float_argument(op, "first", first, {A}, device);
  const auto scales_of = scales_argument<4>(op, scales);
  const Matrix Wk = tiles_argument(op, "key", key, A, C, scales_of[0], device),
               Wv = tiles_argument(op, "value", value, A, C, scales_of[1], device),
               Wr = tiles_argument(op, "receptance", receptance, A, C, scales_of[2], device),
               Wo = tiles_argument(op, "output", output, C, A, scales_of[3], device);
  TORCH_CHECK(num.stride(0) == den.stride(0) && num.stride(0) == max.stride(0), op,
              ": num, den, max: expected rows equally far apart");
  const int64_t* const rows_of_state = slots_argument(op, slots, x);
  Tensor y = at::empty({B, C}, rows.options());
  const TimeMixing4Step step{
      .B = B,
      .C = C,
      .A = A,
      .x = rows.const_data_ptr<float>(),
      .norm = {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)},
      .mix_k = mk.const_data_ptr<float>(),
      .mix_v = mv.const_data_ptr<float>(),
      .mix_r = mr.const_data_ptr<float>(),
      .decay = w.const_data_ptr<float>(),
      .first = u.const_data_ptr<float>(),
      .key = Wk,
      .value = Wv,
      .receptance = Wr,
      .output = Wo,
      .shift = state_argument(op, "shift", shift, S, C, device),
      .num = state_argument(op, "num", num, S, A, device),
      .den = state_argument(op, "den", den, S, A, device),
      .max = state_argument(op, "max", max, S, A, device),
      .shift_stride = shift.stride(0),
      .wkv_stride = num.stride(0),
      .slots = rows_of_state,
      .y = y.data_ptr<float>(),
  };
  Device::launch(op, step, S, rows);
  return y;
}

template <class Device>
Tensor channel_mixing4_step(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                            const Tensor& mix_k, const Tensor& mix_r, const Tensor& key, const Tensor& receptance,
                            const Tensor& value, const Tensor& shift, const Slots& slots, const ScalesList& scales) {
  static constexpr char op[] = "rwkv_engine::channel_mixing4_step";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, C), got ", x.sizes());
  TORCH_CHECK(value.dim() == 2, op, ": value: expected shape (F, C), got ", value.sizes());
  const at::Device device = x.device();
  const int64_t B = x.size(0), C = x.size(1), F = value.size(0), S = slots ? shift.size(0) : B;
  const Tensor rows = float_argument(op, "x", x, {B, C}, device),
               weight = float_argument(op, "ln_weight", ln_weight, {C}, device),
               bias = float_argument(op, "ln_bias", ln_bias, {C}, device),
               mk = float_argument(op, "mix_k", mix_k, {C}, device),
               mr = float_argument(op, "mix_r", mix_r, {C}, device);
  const auto scales_of = scales_argument<3>(op, scales);
  const Matrix Wk = tiles_argument(op, "key", key, F, C, scales_of[0], device),
               Wr = tiles_argument(op, "receptance", receptance, C, C, scales_of[1], device),
               Wv = rows_argument(op, "value", value, C, F, scales_of[2], device);
  const int64_t* const rows_of_state = slots_argument(op, slots, x);
  Tensor y = at::empty({B, C}, rows.options());
  const ChannelMixing4Step step{
      .B = B,
      .C = C,
      .F = F,
      .x = rows.const_data_ptr<float>(),
      .norm = {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)},
      .mix_k = mk.const_data_ptr<float>(),
      .mix_r = mr.const_data_ptr<float>(),
      .key = Wk,
      .receptance = Wr,
      .value = Wv,
      .shift = state_argument(op, "shift", shift, S, C, device),
      .shift_stride = shift.stride(0),
      .slots = rows_of_state,
      .y = y.data_ptr<float>(),
  };
  Device::launch(op, step, S, rows);
  return y;
}

}  // namespace rwkv

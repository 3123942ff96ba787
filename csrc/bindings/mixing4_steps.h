// Code shared by the bindings of both mixing steps: check arguments, allocate, fill in the kernel's arguments.
//
// Device::launch(op, step, S, x) runs a TimeMixing4Step or ChannelMixing4Step over a state of S rows.
#pragma once

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

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

// Fills in the arguments of a step, and keeps tensors that were made contiguous for it.
class StepArguments {
 public:
  // `op` begins the messages; it may be changed between steps.
  StepArguments(const char* op, const Tensor& x, const Slots& slots, const Slots& before = std::nullopt)
      : op(op), device_(x.device()) {
    TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, C), got ", x.sizes());
    B_ = x.size(0), C_ = x.size(1);
    x_ = floats("x", x, {B_, C_});
    slots_ = slots_argument(op, "slots", slots, x);
    before_ = slots_argument(op, "before", before, x);
    TORCH_CHECK(slots_ || !before_, op, ": before: expected none without slots");
  }

  // Both leave out y.
  TimeMixing4Step time(const Tensor& ln_weight, const Tensor& ln_bias, double eps, const Tensor& mix_k,
                       const Tensor& mix_v, const Tensor& mix_r, const Tensor& decay, const Tensor& first,
                       const Tensor& key, const Tensor& value, const Tensor& receptance, const Tensor& output,
                       const Tensor& shift, const Tensor& num, const Tensor& den, const Tensor& max,
                       const std::array<Scales, 4>& scales) {
    TORCH_CHECK(decay.dim() == 1, op, ": decay: expected shape (A,), got ", decay.sizes());
    const int64_t A = decay.size(0);
    TORCH_CHECK(num.stride(0) == den.stride(0) && num.stride(0) == max.stride(0), op,
                ": num, den, max: expected rows equally far apart");
    return {
        .B = B_,
        .C = C_,
        .A = A,
        .x = x_,
        .norm = norm(ln_weight, ln_bias, eps),
        .mix_k = floats("mix_k", mix_k, {C_}),
        .mix_v = floats("mix_v", mix_v, {C_}),
        .mix_r = floats("mix_r", mix_r, {C_}),
        .decay = floats("decay", decay, {A}),
        .first = floats("first", first, {A}),
        .key = tiles_argument(op.c_str(), "key", key, A, C_, scales[0], device_),
        .value = tiles_argument(op.c_str(), "value", value, A, C_, scales[1], device_),
        .receptance = tiles_argument(op.c_str(), "receptance", receptance, A, C_, scales[2], device_),
        .output = tiles_argument(op.c_str(), "output", output, C_, A, scales[3], device_),
        .shift = state("shift", shift, C_),
        .num = state("num", num, A),
        .den = state("den", den, A),
        .max = state("max", max, A),
        .shift_stride = shift.stride(0),
        .wkv_stride = num.stride(0),
        .slots = slots_,
        .y = nullptr,
        .before = before_,
    };
  }

  ChannelMixing4Step channel(const Tensor& ln_weight, const Tensor& ln_bias, double eps, const Tensor& mix_k,
                             const Tensor& mix_r, const Tensor& key, const Tensor& receptance, const Tensor& value,
                             const Tensor& shift, const std::array<Scales, 3>& scales) {
    TORCH_CHECK(value.dim() == 2, op, ": value: expected shape (F, C), got ", value.sizes());
    const int64_t F = value.size(0);
    return {
        .B = B_,
        .C = C_,
        .F = F,
        .x = x_,
        .norm = norm(ln_weight, ln_bias, eps),
        .mix_k = floats("mix_k", mix_k, {C_}),
        .mix_r = floats("mix_r", mix_r, {C_}),
        .key = tiles_argument(op.c_str(), "key", key, F, C_, scales[0], device_),
        .receptance = tiles_argument(op.c_str(), "receptance", receptance, C_, C_, scales[1], device_),
        .value = rows_argument(op.c_str(), "value", value, C_, F, scales[2], device_),
        .shift = state("shift", shift, C_),
        .shift_stride = shift.stride(0),
        .slots = slots_,
        .y = nullptr,
        .before = before_,
    };
  }

  std::string op;
  int64_t rows_of_state = -1;  // S, the same in all states

 protected:
  LayerNorm norm(const Tensor& weight, const Tensor& bias, double eps) {
    return {floats("ln_weight", weight, {C_}), floats("ln_bias", bias, {C_}), static_cast<float>(eps)};
  }
  const float* floats(const char* name, const Tensor& tensor, at::IntArrayRef shape) {
    kept_.push_back(float_argument(op.c_str(), name, tensor, shape, device_));
    return kept_.back().const_data_ptr<float>();
  }
  float* state(const char* name, const Tensor& tensor, int64_t width) {
    if (rows_of_state < 0) rows_of_state = slots_ ? tensor.size(0) : B_;
    return state_argument(op.c_str(), name, tensor, rows_of_state, width, device_);
  }

  const at::Device device_;
  int64_t B_, C_;
  std::vector<Tensor> kept_;
  const float* x_;
  const int64_t *slots_, *before_;
};

template <class Device>
Tensor time_mixing4_step(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                         const Tensor& mix_k, const Tensor& mix_v, const Tensor& mix_r, const Tensor& decay,
                         const Tensor& first, const Tensor& key, const Tensor& value, const Tensor& receptance,
                         const Tensor& output, const Tensor& shift, const Tensor& num, const Tensor& den,
                         const Tensor& max, const Slots& slots, const ScalesList& scales) {
  static constexpr char op[] = "rwkv_engine::time_mixing4_step";
  StepArguments arguments(op, x, slots);
  TimeMixing4Step step = arguments.time(ln_weight, ln_bias, eps, mix_k, mix_v, mix_r, decay, first, key, value,
                                        receptance, output, shift, num, den, max, scales_argument<4>(op, scales));
  Tensor y = at::empty({step.B, step.C}, x.options());
  step.y = y.data_ptr<float>();
  Device::launch(op, step, arguments.rows_of_state, x);
  return y;
}

template <class Device>
Tensor channel_mixing4_step(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                            const Tensor& mix_k, const Tensor& mix_r, const Tensor& key, const Tensor& receptance,
                            const Tensor& value, const Tensor& shift, const Slots& slots, const ScalesList& scales) {
  static constexpr char op[] = "rwkv_engine::channel_mixing4_step";
  StepArguments arguments(op, x, slots);
  ChannelMixing4Step step = arguments.channel(ln_weight, ln_bias, eps, mix_k, mix_r, key, receptance, value, shift,
                                              scales_argument<3>(op, scales));
  Tensor y = at::empty({step.B, step.C}, x.options());
  step.y = y.data_ptr<float>();
  Device::launch(op, step, arguments.rows_of_state, x);
  return y;
}

}  // namespace rwkv

// rwkv_engine::time_mixing_step and channel_mixing_step on the CPU: check, allocate, launch, register. No arithmetic.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>

#include "bindings/parallel.h"
#include "bindings/weights.h"
#include "kernels/cpu/channel_mixing_step.h"
#include "kernels/cpu/time_mixing_step.h"

namespace rwkv {
namespace {

using at::Tensor;
using Slots = std::optional<Tensor>;

// Slots of B rows, each one of the S rows of a state.
const int64_t* checked_slots(const char* op, const Slots& slots, const Tensor& x, int64_t S) {
  const int64_t* const rows = slots_argument(op, slots, x);
  for (int64_t b = 0; rows && b < x.size(0); ++b)
    TORCH_CHECK(rows[b] >= 0 && rows[b] < S, op, ": slots: row ", b, " has slot ", rows[b], ", expected one of the ", S,
                " rows of the state");
  return rows;
}

template <class Step>
void launch(const Step& step, void (*kernel)(const Step&, float*, const cpu::Run&), const Tensor& like) {
  Tensor scratch = at::empty({step.scratch()}, like.options());
  kernel(step, scratch.data_ptr<float>(), torch_threads(1));
}

Tensor time_mixing_step(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                        const Tensor& mix_k, const Tensor& mix_v, const Tensor& mix_r, const Tensor& decay,
                        const Tensor& first, const Tensor& key, const Tensor& value, const Tensor& receptance,
                        const Tensor& output, const Tensor& shift, const Tensor& num, const Tensor& den,
                        const Tensor& max, const Slots& slots) {
  static constexpr char op[] = "rwkv_engine::time_mixing_step";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, C), got ", x.sizes());
  TORCH_CHECK(decay.dim() == 1, op, ": decay: expected shape (A,), got ", decay.sizes());
  const int64_t B = x.size(0), C = x.size(1), A = decay.size(0), S = slots ? shift.size(0) : B;
  const Tensor rows = float_argument(op, "x", x, {B, C}), weight = float_argument(op, "ln_weight", ln_weight, {C}),
               bias = float_argument(op, "ln_bias", ln_bias, {C}), mk = float_argument(op, "mix_k", mix_k, {C}),
               mv = float_argument(op, "mix_v", mix_v, {C}), mr = float_argument(op, "mix_r", mix_r, {C}),
               w = float_argument(op, "decay", decay, {A}), u = float_argument(op, "first", first, {A});
  check_tiles(op, "key", key, A, C);
  check_tiles(op, "value", value, A, C);
  check_tiles(op, "receptance", receptance, A, C);
  check_tiles(op, "output", output, C, A);
  for (const Tensor* other : {&value, &receptance, &output})
    TORCH_CHECK(other->scalar_type() == key.scalar_type(), op, ": expected matrices of one dtype, got ",
                key.scalar_type(), " and ", other->scalar_type());
  TORCH_CHECK(num.stride(0) == den.stride(0) && num.stride(0) == max.stride(0), op,
              ": num, den, max: expected rows equally far apart");
  Tensor y = at::empty({B, C}, rows.options());
  for_weight_type(op, key, [&]<class Weight>(Weight) {
    const cpu::TimeMixingStep<Weight> step{
        B,
        C,
        A,
        rows.const_data_ptr<float>(),
        {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)},
        mk.const_data_ptr<float>(),
        mv.const_data_ptr<float>(),
        mr.const_data_ptr<float>(),
        w.const_data_ptr<float>(),
        u.const_data_ptr<float>(),
        weights<Weight>(key),
        weights<Weight>(value),
        weights<Weight>(receptance),
        weights<Weight>(output),
        state_argument(op, "shift", shift, S, C),
        state_argument(op, "num", num, S, A),
        state_argument(op, "den", den, S, A),
        state_argument(op, "max", max, S, A),
        shift.stride(0),
        num.stride(0),
        checked_slots(op, slots, x, S),
        y.data_ptr<float>()};
    launch(step, &cpu::time_mixing_step<Weight>, rows);
  });
  return y;
}

Tensor channel_mixing_step(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                           const Tensor& mix_k, const Tensor& mix_r, const Tensor& key, const Tensor& receptance,
                           const Tensor& value, const Tensor& shift, const Slots& slots) {
  static constexpr char op[] = "rwkv_engine::channel_mixing_step";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, C), got ", x.sizes());
  TORCH_CHECK(value.dim() == 2, op, ": value: expected shape (F, C), got ", value.sizes());
  const int64_t B = x.size(0), C = x.size(1), F = value.size(0), S = slots ? shift.size(0) : B;
  const Tensor rows = float_argument(op, "x", x, {B, C}), weight = float_argument(op, "ln_weight", ln_weight, {C}),
               bias = float_argument(op, "ln_bias", ln_bias, {C}), mk = float_argument(op, "mix_k", mix_k, {C}),
               mr = float_argument(op, "mix_r", mix_r, {C});
  check_tiles(op, "key", key, F, C);
  check_tiles(op, "receptance", receptance, C, C);
  TORCH_CHECK(value.size(1) == C && value.is_contiguous(), op, ": value: expected contiguous (F, ", C, "), got shape ",
              value.sizes());
  for (const Tensor* other : {&value, &receptance})
    TORCH_CHECK(other->scalar_type() == key.scalar_type() && other->device().is_cpu(), op,
                ": expected matrices of one dtype on the CPU, got ", key.scalar_type(), " and ", other->scalar_type(),
                " on ", other->device());
  Tensor y = at::empty({B, C}, rows.options());
  for_weight_type(op, key, [&]<class Weight>(Weight) {
    const cpu::ChannelMixingStep<Weight> step{
        B,
        C,
        F,
        rows.const_data_ptr<float>(),
        {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)},
        mk.const_data_ptr<float>(),
        mr.const_data_ptr<float>(),
        weights<Weight>(key),
        weights<Weight>(receptance),
        weights<Weight>(value),
        state_argument(op, "shift", shift, S, C),
        shift.stride(0),
        checked_slots(op, slots, x, S),
        y.data_ptr<float>()};
    launch(step, &cpu::channel_mixing_step<Weight>, rows);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("time_mixing_step", &time_mixing_step);
  m.impl("channel_mixing_step", &channel_mixing_step);
}

}  // namespace rwkv

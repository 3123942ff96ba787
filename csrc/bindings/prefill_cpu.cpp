// rwkv_engine::ln_shift, squared_relu and gate_residual on the CPU: check, allocate, launch, register. No arithmetic.
// Together in one file: each takes a page of torch's headers.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "bindings/parallel.h"
#include "bindings/weights.h"
#include "kernels/cpu/gates.h"
#include "kernels/cpu/ln_shift.h"

namespace rwkv {
namespace {

using at::Tensor;

// Numbers a thread is worth waking for.
constexpr int64_t kGrain = 16384;

std::tuple<Tensor, Tensor> ln_shift(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                                    const Tensor& mixes, const Tensor& shift) {
  static constexpr char op[] = "rwkv_engine::ln_shift";
  TORCH_CHECK(x.dim() == 3 && x.size(1) > 0, op, ": x: expected shape (B, T, C) with T > 0, got ", x.sizes());
  TORCH_CHECK(mixes.dim() == 2, op, ": mixes: expected shape (M, C), got ", mixes.sizes());
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2), M = mixes.size(0);
  const Tensor rows = float_argument(op, "x", x, {B, T, C}), weight = float_argument(op, "ln_weight", ln_weight, {C}),
               bias = float_argument(op, "ln_bias", ln_bias, {C}), mix = float_argument(op, "mixes", mixes, {M, C}),
               before = float_argument(op, "shift", shift, {B, C});
  Tensor mixed = at::empty({M, B, T, C}, rows.options()), last = at::empty({B, C}, rows.options());
  cpu::ln_shift({B,
                 T,
                 C,
                 M,
                 rows.const_data_ptr<float>(),
                 {weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)},
                 mix.const_data_ptr<float>(),
                 before.const_data_ptr<float>(),
                 mixed.data_ptr<float>(),
                 last.data_ptr<float>()},
                torch_threads(std::max<int64_t>(1, kGrain / std::max<int64_t>(1, C))));
  return {mixed, last};
}

Tensor squared_relu(const Tensor& k) {
  const Tensor in = float_argument("rwkv_engine::squared_relu", "k", k, k.sizes());
  Tensor y = at::empty_like(in);
  cpu::squared_relu(in.const_data_ptr<float>(), in.numel(), y.data_ptr<float>(), torch_threads(kGrain));
  return y;
}

Tensor gate_residual(const std::optional<Tensor>& x, const Tensor& r, const Tensor& y) {
  static constexpr char op[] = "rwkv_engine::gate_residual";
  const Tensor gate = float_argument(op, "r", r, r.sizes()), in = float_argument(op, "y", y, r.sizes());
  const std::optional<Tensor> base = x ? std::optional(float_argument(op, "x", *x, r.sizes())) : std::nullopt;
  Tensor out = at::empty_like(gate);
  cpu::gate_residual(base ? base->const_data_ptr<float>() : nullptr, gate.const_data_ptr<float>(),
                     in.const_data_ptr<float>(), gate.numel(), out.data_ptr<float>(), torch_threads(kGrain));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("ln_shift", &ln_shift);
  m.impl("squared_relu", &squared_relu);
  m.impl("gate_residual", &gate_residual);
}

}  // namespace rwkv

// rwkv_engine::ln_shift, squared_relu_ and gate_residual on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include "bindings/prefill.h"

#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/gates.h"
#include "kernels/cpu/ln_shift.h"

namespace rwkv {
namespace {

struct PrefillOnCpu {
  explicit PrefillOnCpu(at::Device) {}

  void ln_shift(const LnShift& all, const at::Tensor&) const { cpu::ln_shift(all, torch_threads); }
  void squared_relu(float* k, int64_t n) const { cpu::squared_relu(k, n, torch_threads); }
  void gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out) const {
    cpu::gate_residual(x, r, y, n, out, torch_threads);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("ln_shift", &ln_shift<PrefillOnCpu>);
  m.impl("squared_relu_", &squared_relu<PrefillOnCpu>);
  m.impl("gate_residual", &gate_residual<PrefillOnCpu>);
}

}  // namespace rwkv

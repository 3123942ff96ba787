// rwkv_engine::philox_uniform on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bindings/draws.h"
#include "kernels/cpu/philox.h"

namespace rwkv {
namespace {

using at::Tensor;

Tensor philox_uniform(const Tensor& seeds, const Tensor& samples, const Tensor& positions) {
  const Tensor keys = draw_argument("seeds", seeds, seeds), high = draw_argument("samples", samples, seeds),
               low = draw_argument("positions", positions, seeds);
  Tensor out = at::empty(seeds.sizes(), seeds.options().dtype(at::kDouble));
  cpu::philox_uniform(keys.const_data_ptr<int64_t>(), high.const_data_ptr<int64_t>(), low.const_data_ptr<int64_t>(),
                      out.numel(), out.data_ptr<double>());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("philox_uniform", &philox_uniform); }

}  // namespace rwkv

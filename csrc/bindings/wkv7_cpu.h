// rwkv_engine::wkv7 on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include "kernels/cpu/wkv7.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "bindings/parallel.h"
#include "bindings/wkv7_arguments.h"

namespace rwkv {
namespace {

using at::Tensor;

Wkv7Tensors wkv7(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& kappa,
                 const Tensor& a, const Tensor& state) {
  const Wkv7Arguments in("rwkv_engine::wkv7", r, w, k, v, kappa, a, state);
  Wkv7Results out(in);
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "rwkv_engine::wkv7", [&] {
    cpu::wkv7<scalar_t>(in.size, in.pointers<scalar_t>(), out.pointers<scalar_t>(), torch_threads);
  });
  return out.tensors();
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("wkv7", &wkv7); }

}  // namespace rwkv

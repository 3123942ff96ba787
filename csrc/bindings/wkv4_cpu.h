// rwkv_engine::wkv4 and rwkv_engine::wkv4_backward on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include "kernels/cpu/wkv4.h"

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "bindings/parallel.h"
#include "bindings/wkv4_arguments.h"

namespace rwkv {
namespace {

using at::Tensor;

Wkv4Tensors wkv4(const Tensor& decay, const Tensor& first, const Tensor& k, const Tensor& v, const Tensor& num,
                 const Tensor& den, const Tensor& max) {
  const Wkv4Arguments in("rwkv_engine::wkv4", decay, first, k, v, num, den, max);
  Wkv4Results out(in);
  AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "rwkv_engine::wkv4", [&] {
    cpu::wkv4<scalar_t>(in.size, in.pointers<scalar_t>(), out.pointers<scalar_t>(), torch_threads);
  });
  return out.tensors();
}

Wkv4GradTensors wkv4_backward(const Tensor& grad_y, const Tensor& grad_num, const Tensor& grad_den,
                              const Tensor& grad_max, const Tensor& decay, const Tensor& first, const Tensor& k,
                              const Tensor& v, const Tensor& num, const Tensor& den, const Tensor& max) {
  static constexpr char op[] = "rwkv_engine::wkv4_backward";
  const Wkv4Arguments in(op, decay, first, k, v, num, den, max);
  const Wkv4GradArguments grad(op, in, grad_y, grad_num, grad_den, grad_max);
  Wkv4GradResults out(in);
  AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), op, [&] {
    cpu::wkv4_backward<scalar_t>(in.size, in.pointers<scalar_t>(), grad.pointers<scalar_t>(), out.pointers<scalar_t>(),
                                 torch_threads);
  });
  return out.tensors();
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("wkv4", &wkv4);
  m.impl("wkv4_backward", &wkv4_backward);
}

}  // namespace rwkv

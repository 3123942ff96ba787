// rwkv_engine::wkv4 and rwkv_engine::wkv4_backward on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include "kernels/cuda/wkv4.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/wkv4_arguments.h"

namespace rwkv {
namespace {

using at::Tensor;

Wkv4Tensors wkv4(const Tensor& decay, const Tensor& first, const Tensor& k, const Tensor& v, const Tensor& num,
                 const Tensor& den, const Tensor& max) {
  const Wkv4Arguments in("rwkv_engine::wkv4", decay, first, k, v, num, den, max);
  const c10::cuda::CUDAGuard guard(k.device());
  Wkv4Results out(in);
  Tensor scratch = at::empty({cuda::wkv4_scratch_numbers(in.size)}, in.k.options());
  AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "rwkv_engine::wkv4", [&] {
    C10_CUDA_CHECK(cuda::wkv4<scalar_t>(in.size, in.pointers<scalar_t>(), out.pointers<scalar_t>(),
                                        scratch.data_ptr<scalar_t>(), c10::cuda::getCurrentCUDAStream()));
  });
  return out.tensors();
}

Wkv4GradTensors wkv4_backward(const Tensor& grad_y, const Tensor& grad_num, const Tensor& grad_den,
                              const Tensor& grad_max, const Tensor& decay, const Tensor& first, const Tensor& k,
                              const Tensor& v, const Tensor& num, const Tensor& den, const Tensor& max) {
  static constexpr char op[] = "rwkv_engine::wkv4_backward";
  const Wkv4Arguments in(op, decay, first, k, v, num, den, max);
  const Wkv4GradArguments grad(op, in, grad_y, grad_num, grad_den, grad_max);
  const c10::cuda::CUDAGuard guard(k.device());
  Wkv4GradResults out(in);
  Tensor scratch = at::empty({cuda::wkv4_backward_scratch_numbers(in.size)}, in.k.options());
  AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), op, [&] {
    C10_CUDA_CHECK(cuda::wkv4_backward<scalar_t>(in.size, in.pointers<scalar_t>(), grad.pointers<scalar_t>(),
                                                 out.pointers<scalar_t>(), scratch.data_ptr<scalar_t>(),
                                                 c10::cuda::getCurrentCUDAStream()));
  });
  return out.tensors();
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("wkv4", &wkv4);
  m.impl("wkv4_backward", &wkv4_backward);
}

}  // namespace rwkv

// rwkv_engine::wkv7 and rwkv_engine::wkv7_backward on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include "kernels/cuda/wkv7.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/wkv7_arguments.h"

namespace rwkv {
namespace {

using at::Tensor;

void check_channels(const char* op, const Wkv7Arguments& in) {
  TORCH_CHECK(in.size.N <= cuda::kWkv7MostChannels, op, ": the CUDA kernels take heads of at most ",
              cuda::kWkv7MostChannels, " channels, got ", in.size.N, "; run this model on the CPU");
}

Wkv7Tensors wkv7(const Tensor& r, const Tensor& w, const Tensor& k, const Tensor& v, const Tensor& kappa,
                 const Tensor& a, const Tensor& state) {
  static constexpr char op[] = "rwkv_engine::wkv7";
  const Wkv7Arguments in(op, r, w, k, v, kappa, a, state);
  check_channels(op, in);
  const c10::cuda::CUDAGuard guard(r.device());
  Wkv7Results out(in);
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), op, [&] {
    C10_CUDA_CHECK(cuda::wkv7<scalar_t>(in.size, in.pointers<scalar_t>(), out.pointers<scalar_t>(),
                                        c10::cuda::getCurrentCUDAStream()));
  });
  return out.tensors();
}

Wkv7GradTensors wkv7_backward(const Tensor& grad_y, const Tensor& grad_state, const Tensor& r, const Tensor& w,
                              const Tensor& k, const Tensor& v, const Tensor& kappa, const Tensor& a,
                              const Tensor& state) {
  static constexpr char op[] = "rwkv_engine::wkv7_backward";
  const Wkv7Arguments in(op, r, w, k, v, kappa, a, state);
  check_channels(op, in);
  const Wkv7GradArguments grad(op, in, grad_y, grad_state);
  const c10::cuda::CUDAGuard guard(r.device());
  Wkv7GradResults out(in);
  Tensor scratch = at::empty({cuda::wkv7_backward_scratch_numbers(in.size)}, in.r.options());
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), op, [&] {
    C10_CUDA_CHECK(cuda::wkv7_backward<scalar_t>(in.size, in.pointers<scalar_t>(), grad.pointers<scalar_t>(),
                                                 out.pointers<scalar_t>(), scratch.data_ptr<scalar_t>(),
                                                 c10::cuda::getCurrentCUDAStream()));
  });
  return out.tensors();
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("wkv7", &wkv7);
  m.impl("wkv7_backward", &wkv7_backward);
}

}  // namespace rwkv

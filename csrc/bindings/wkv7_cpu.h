// rwkv_engine::wkv7 on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include "kernels/cpu/wkv7.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "bindings/parallel.h"

namespace rwkv {
namespace {

at::Tensor wkv7_argument(const char* name, const at::Tensor& tensor, at::IntArrayRef shape, const at::Tensor& r) {
  TORCH_CHECK(tensor.sizes() == shape, "rwkv_engine::wkv7: ", name, ": expected shape ", shape, ", got ",
              tensor.sizes());
  TORCH_CHECK(tensor.device() == r.device(), "rwkv_engine::wkv7: ", name, ": expected device ", r.device(),
              " as r has, got ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == r.scalar_type(), "rwkv_engine::wkv7: ", name, ": expected dtype ",
              r.scalar_type(), " as r has, got ", tensor.scalar_type());
  return tensor.contiguous();
}

std::tuple<at::Tensor, at::Tensor> wkv7(const at::Tensor& r, const at::Tensor& w, const at::Tensor& k,
                                        const at::Tensor& v, const at::Tensor& kappa, const at::Tensor& a,
                                        const at::Tensor& state) {
  TORCH_CHECK(r.dim() == 4 && r.size(1) > 0, "rwkv_engine::wkv7: r: expected shape (B, T, H, N) with T > 0, got ",
              r.sizes());
  const cpu::Wkv7Size size{r.size(0), r.size(1), r.size(2), r.size(3)};
  const at::Tensor own[] = {wkv7_argument("r", r, r.sizes(), r),
                            wkv7_argument("w", w, r.sizes(), r),
                            wkv7_argument("k", k, r.sizes(), r),
                            wkv7_argument("v", v, r.sizes(), r),
                            wkv7_argument("kappa", kappa, r.sizes(), r),
                            wkv7_argument("a", a, r.sizes(), r),
                            wkv7_argument("state", state, {size.B, size.H, size.N, size.N}, r)};
  at::Tensor y = at::empty_like(own[0]), after = at::empty_like(own[6]);
  AT_DISPATCH_FLOATING_TYPES(r.scalar_type(), "rwkv_engine::wkv7", [&] {
    const cpu::Wkv7Inputs<scalar_t> in{own[0].const_data_ptr<scalar_t>(), own[1].const_data_ptr<scalar_t>(),
                                       own[2].const_data_ptr<scalar_t>(), own[3].const_data_ptr<scalar_t>(),
                                       own[4].const_data_ptr<scalar_t>(), own[5].const_data_ptr<scalar_t>(),
                                       own[6].const_data_ptr<scalar_t>()};
    cpu::wkv7<scalar_t>(size, in, {y.data_ptr<scalar_t>(), after.data_ptr<scalar_t>()}, torch_threads);
  });
  return {y, after};
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("wkv7", &wkv7); }

}  // namespace rwkv

// rwkv_engine::wkv4 and rwkv_engine::wkv4_backward on the CPU: check, allocate, launch, register. No arithmetic.
#include "kernels/cpu/wkv4.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "bindings/parallel.h"

namespace rwkv {
namespace {

using at::Tensor;

Tensor checked(const char* op, const char* name, const Tensor& tensor, at::IntArrayRef shape, const Tensor& like) {
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device().is_cpu(), op, ": ", name, ": expected a CPU tensor, got ", tensor.device());
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, ": expected dtype ", like.scalar_type(),
              " as k has, got ", tensor.scalar_type());
  return tensor.contiguous();
}

// Inputs after the checks, contiguous and kept alive.
struct Checked {
  cpu::Wkv4Size size;
  Tensor decay, first, k, v, num, den, max;

  template <class Real>
  cpu::Wkv4Inputs<Real> pointers() const {
    return {decay.const_data_ptr<Real>(), first.const_data_ptr<Real>(), k.const_data_ptr<Real>(),
            v.const_data_ptr<Real>(),     num.const_data_ptr<Real>(),   den.const_data_ptr<Real>(),
            max.const_data_ptr<Real>()};
  }
};

Checked check(const char* op, const Tensor& decay, const Tensor& first, const Tensor& k, const Tensor& v,
              const Tensor& num, const Tensor& den, const Tensor& max) {
  TORCH_CHECK(k.dim() == 3 && k.size(1) > 0, op, ": k: expected shape (B, T, C) with T > 0, got ", k.sizes());
  const int64_t B = k.size(0), T = k.size(1), C = k.size(2);
  return {{B, T, C},
          checked(op, "decay", decay, {C}, k),
          checked(op, "first", first, {C}, k),
          checked(op, "k", k, {B, T, C}, k),
          checked(op, "v", v, {B, T, C}, k),
          checked(op, "num", num, {B, C}, k),
          checked(op, "den", den, {B, C}, k),
          checked(op, "max", max, {B, C}, k)};
}

// A thread is worth waking for about 4096 channel-steps.
cpu::Run threads_for(int64_t channel_steps_per_unit) {
  return torch_threads(std::max<int64_t>(1, 4096 / std::max<int64_t>(1, channel_steps_per_unit)));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> wkv4(const Tensor& decay, const Tensor& first, const Tensor& k,
                                                const Tensor& v, const Tensor& num, const Tensor& den,
                                                const Tensor& max) {
  const Checked in = check("rwkv_engine::wkv4", decay, first, k, v, num, den, max);
  Tensor y = at::empty_like(in.k), num_out = at::empty_like(in.num), den_out = at::empty_like(in.den),
         max_out = at::empty_like(in.max);
  AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), "rwkv_engine::wkv4", [&] {
    cpu::wkv4<scalar_t>(in.size, in.pointers<scalar_t>(),
                        {y.data_ptr<scalar_t>(), num_out.data_ptr<scalar_t>(), den_out.data_ptr<scalar_t>(),
                         max_out.data_ptr<scalar_t>()},
                        threads_for(16 * in.size.T));
  });
  return {y, num_out, den_out, max_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wkv4_backward(
    const Tensor& grad_y, const Tensor& grad_num, const Tensor& grad_den, const Tensor& grad_max, const Tensor& decay,
    const Tensor& first, const Tensor& k, const Tensor& v, const Tensor& num, const Tensor& den, const Tensor& max) {
  static constexpr char op[] = "rwkv_engine::wkv4_backward";
  const Checked in = check(op, decay, first, k, v, num, den, max);
  const auto [B, T, C] = in.size;
  const Tensor gy = checked(op, "grad_y", grad_y, {B, T, C}, k), gn = checked(op, "grad_num", grad_num, {B, C}, k),
               gd = checked(op, "grad_den", grad_den, {B, C}, k), gm = checked(op, "grad_max", grad_max, {B, C}, k);
  Tensor decay_out = at::empty_like(in.decay), first_out = at::empty_like(in.first), k_out = at::empty_like(in.k),
         v_out = at::empty_like(in.v), num_out = at::empty_like(in.num), den_out = at::empty_like(in.den),
         max_out = at::empty_like(in.max);
  AT_DISPATCH_FLOATING_TYPES(k.scalar_type(), op, [&] {
    cpu::wkv4_backward<scalar_t>(in.size, in.pointers<scalar_t>(),
                                 {gy.const_data_ptr<scalar_t>(), gn.const_data_ptr<scalar_t>(),
                                  gd.const_data_ptr<scalar_t>(), gm.const_data_ptr<scalar_t>()},
                                 {decay_out.data_ptr<scalar_t>(), first_out.data_ptr<scalar_t>(),
                                  k_out.data_ptr<scalar_t>(), v_out.data_ptr<scalar_t>(), num_out.data_ptr<scalar_t>(),
                                  den_out.data_ptr<scalar_t>(), max_out.data_ptr<scalar_t>()},
                                 threads_for(16 * in.size.B * in.size.T));
  });
  return {decay_out, first_out, k_out, v_out, num_out, den_out, max_out};
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("wkv4", &wkv4);
  m.impl("wkv4_backward", &wkv4_backward);
}

}  // namespace rwkv

// Code shared by the bindings of wkv4 on every device: checks of the arguments, pointers to them, and the outputs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <tuple>

#include "kernels/wkv4.h"

namespace rwkv {

using Wkv4Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Wkv4GradTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline at::Tensor wkv4_argument(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                                const at::Tensor& k) {
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device() == k.device(), op, ": ", name, ": expected device ", k.device(), " as k has, got ",
              tensor.device());
  TORCH_CHECK(tensor.scalar_type() == k.scalar_type(), op, ": ", name, ": expected dtype ", k.scalar_type(),
              " as k has, got ", tensor.scalar_type());
  return tensor.contiguous();
}

// The checked arguments, contiguous; this object keeps them alive.
struct Wkv4Arguments {
  Wkv4Size size;
  at::Tensor decay, first, k, v, num, den, max;

  Wkv4Arguments(const char* op, const at::Tensor& decay, const at::Tensor& first, const at::Tensor& k,
                const at::Tensor& v, const at::Tensor& num, const at::Tensor& den, const at::Tensor& max) {
    TORCH_CHECK(k.dim() == 3 && k.size(1) > 0, op, ": k: expected shape (B, T, C) with T > 0, got ", k.sizes());
    const int64_t B = k.size(0), T = k.size(1), C = k.size(2);
    size = {B, T, C};
    this->decay = wkv4_argument(op, "decay", decay, {C}, k);
    this->first = wkv4_argument(op, "first", first, {C}, k);
    this->k = wkv4_argument(op, "k", k, {B, T, C}, k);
    this->v = wkv4_argument(op, "v", v, {B, T, C}, k);
    this->num = wkv4_argument(op, "num", num, {B, C}, k);
    this->den = wkv4_argument(op, "den", den, {B, C}, k);
    this->max = wkv4_argument(op, "max", max, {B, C}, k);
  }
  template <class Real>
  Wkv4Inputs<Real> pointers() const {
    return {decay.const_data_ptr<Real>(), first.const_data_ptr<Real>(), k.const_data_ptr<Real>(),
            v.const_data_ptr<Real>(),     num.const_data_ptr<Real>(),   den.const_data_ptr<Real>(),
            max.const_data_ptr<Real>()};
  }
};

// The checked gradients with respect to the outputs.
struct Wkv4GradArguments {
  at::Tensor y, num, den, max;

  Wkv4GradArguments(const char* op, const Wkv4Arguments& in, const at::Tensor& y, const at::Tensor& num,
                    const at::Tensor& den, const at::Tensor& max)
      : y(wkv4_argument(op, "grad_y", y, in.k.sizes(), in.k)),
        num(wkv4_argument(op, "grad_num", num, in.num.sizes(), in.k)),
        den(wkv4_argument(op, "grad_den", den, in.num.sizes(), in.k)),
        max(wkv4_argument(op, "grad_max", max, in.num.sizes(), in.k)) {}
  template <class Real>
  Wkv4OutputGrads<Real> pointers() const {
    return {y.const_data_ptr<Real>(), num.const_data_ptr<Real>(), den.const_data_ptr<Real>(),
            max.const_data_ptr<Real>()};
  }
};

// The allocated outputs of the operators.
struct Wkv4Results {
  at::Tensor y, num, den, max;

  explicit Wkv4Results(const Wkv4Arguments& in)
      : y(at::empty_like(in.k)),
        num(at::empty_like(in.num)),
        den(at::empty_like(in.den)),
        max(at::empty_like(in.max)) {}
  template <class Real>
  Wkv4Outputs<Real> pointers() {
    return {y.data_ptr<Real>(), num.data_ptr<Real>(), den.data_ptr<Real>(), max.data_ptr<Real>()};
  }
  Wkv4Tensors tensors() const { return {y, num, den, max}; }
};

struct Wkv4GradResults {
  at::Tensor decay, first, k, v, num, den, max;

  explicit Wkv4GradResults(const Wkv4Arguments& in)
      : decay(at::empty_like(in.decay)),
        first(at::empty_like(in.first)),
        k(at::empty_like(in.k)),
        v(at::empty_like(in.v)),
        num(at::empty_like(in.num)),
        den(at::empty_like(in.den)),
        max(at::empty_like(in.max)) {}
  template <class Real>
  Wkv4InputGrads<Real> pointers() {
    return {decay.data_ptr<Real>(), first.data_ptr<Real>(), k.data_ptr<Real>(),  v.data_ptr<Real>(),
            num.data_ptr<Real>(),   den.data_ptr<Real>(),   max.data_ptr<Real>()};
  }
  Wkv4GradTensors tensors() const { return {decay, first, k, v, num, den, max}; }
};

}  // namespace rwkv

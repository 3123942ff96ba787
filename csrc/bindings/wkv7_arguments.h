// Code shared by the bindings of wkv7 on every device: checks of the arguments, pointers to them, and the outputs.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <tuple>

#include "kernels/wkv7.h"

namespace rwkv {

using Wkv7Tensors = std::tuple<at::Tensor, at::Tensor>;
using Wkv7GradTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline at::Tensor wkv7_argument(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                                const at::Tensor& r) {
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device() == r.device(), op, ": ", name, ": expected device ", r.device(), " as r has, got ",
              tensor.device());
  TORCH_CHECK(tensor.scalar_type() == r.scalar_type(), op, ": ", name, ": expected dtype ", r.scalar_type(),
              " as r has, got ", tensor.scalar_type());
  return tensor.contiguous();
}

// The checked arguments, contiguous; this object keeps them alive.
struct Wkv7Arguments {
  Wkv7Size size;
  at::Tensor r, w, k, v, kappa, a, state;

  Wkv7Arguments(const char* op, const at::Tensor& r, const at::Tensor& w, const at::Tensor& k, const at::Tensor& v,
                const at::Tensor& kappa, const at::Tensor& a, const at::Tensor& state) {
    TORCH_CHECK(r.dim() == 4 && r.size(1) > 0, op, ": r: expected shape (B, T, H, N) with T > 0, got ", r.sizes());
    size = {r.size(0), r.size(1), r.size(2), r.size(3)};
    this->r = wkv7_argument(op, "r", r, r.sizes(), r);
    this->w = wkv7_argument(op, "w", w, r.sizes(), r);
    this->k = wkv7_argument(op, "k", k, r.sizes(), r);
    this->v = wkv7_argument(op, "v", v, r.sizes(), r);
    this->kappa = wkv7_argument(op, "kappa", kappa, r.sizes(), r);
    this->a = wkv7_argument(op, "a", a, r.sizes(), r);
    this->state = wkv7_argument(op, "state", state, {size.B, size.H, size.N, size.N}, r);
  }
  template <class Real>
  Wkv7Inputs<Real> pointers() const {
    return {r.const_data_ptr<Real>(),    w.const_data_ptr<Real>(),     k.const_data_ptr<Real>(),
            v.const_data_ptr<Real>(),    kappa.const_data_ptr<Real>(), a.const_data_ptr<Real>(),
            state.const_data_ptr<Real>()};
  }
};

// The checked gradients with respect to the outputs.
struct Wkv7GradArguments {
  at::Tensor y, state;

  Wkv7GradArguments(const char* op, const Wkv7Arguments& in, const at::Tensor& y, const at::Tensor& state)
      : y(wkv7_argument(op, "grad_y", y, in.r.sizes(), in.r)),
        state(wkv7_argument(op, "grad_state", state, in.state.sizes(), in.r)) {}
  template <class Real>
  Wkv7OutputGrads<Real> pointers() const {
    return {y.const_data_ptr<Real>(), state.const_data_ptr<Real>()};
  }
};

// The allocated outputs of the operators.
struct Wkv7Results {
  at::Tensor y, state;

  explicit Wkv7Results(const Wkv7Arguments& in) : y(at::empty_like(in.r)), state(at::empty_like(in.state)) {}
  template <class Real>
  Wkv7Outputs<Real> pointers() {
    return {y.data_ptr<Real>(), state.data_ptr<Real>()};
  }
  Wkv7Tensors tensors() const { return {y, state}; }
};

struct Wkv7GradResults {
  at::Tensor r, w, k, v, kappa, a, state;

  explicit Wkv7GradResults(const Wkv7Arguments& in)
      : r(at::empty_like(in.r)),
        w(at::empty_like(in.r)),
        k(at::empty_like(in.r)),
        v(at::empty_like(in.r)),
        kappa(at::empty_like(in.r)),
        a(at::empty_like(in.r)),
        state(at::empty_like(in.state)) {}
  template <class Real>
  Wkv7InputGrads<Real> pointers() {
    return {r.data_ptr<Real>(),     w.data_ptr<Real>(), k.data_ptr<Real>(),    v.data_ptr<Real>(),
            kappa.data_ptr<Real>(), a.data_ptr<Real>(), state.data_ptr<Real>()};
  }
  Wkv7GradTensors tensors() const { return {r, w, k, v, kappa, a, state}; }
};

}  // namespace rwkv

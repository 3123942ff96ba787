// rwkv_engine::ln_shift, ln_shift_rounded, squared_relu_ and gate_residual on CUDA: check, allocate, launch, register.
// No arithmetic.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/prefill.h"
#include "kernels/cuda/gates.h"
#include "kernels/cuda/ln_shift.h"

namespace rwkv {
namespace {

struct PrefillOnCuda {
  const c10::cuda::CUDAGuard guard;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  explicit PrefillOnCuda(at::Device device) : guard(device) {}

  void ln_shift(const LnShift& all, const Tensor& mixed) const {
    const auto launch = [&]<class Number>(Number) {
      C10_CUDA_CHECK(cuda::ln_shift(all, static_cast<Number*>(mixed.data_ptr()), stream));
    };
    const auto type = mixed.scalar_type();
    type == at::kHalf ? launch(Float16{}) : type == at::kBFloat16 ? launch(Bfloat16{}) : launch(float{});
  }
  void squared_relu(float* k, int64_t n) const { C10_CUDA_CHECK(cuda::squared_relu(k, n, stream)); }
  void gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out) const {
    C10_CUDA_CHECK(cuda::gate_residual(x, r, y, n, out, stream));
  }
};

std::tuple<Tensor, Tensor> ln_shift_rounded(const Tensor& x, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                                            const Tensor& mixes, const Tensor& shift, at::ScalarType dtype) {
  static constexpr char op[] = "rwkv_engine::ln_shift_rounded";
  TORCH_CHECK(dtype == at::kHalf || dtype == at::kBFloat16, op, ": dtype: expected float16 or bfloat16, got ", dtype);
  return ln_shift_as<PrefillOnCuda>(op, x, ln_weight, ln_bias, eps, mixes, shift, dtype);
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("ln_shift", &ln_shift<PrefillOnCuda>);
  m.impl("ln_shift_rounded", &ln_shift_rounded);
  m.impl("squared_relu_", &squared_relu<PrefillOnCuda>);
  m.impl("gate_residual", &gate_residual<PrefillOnCuda>);
}

}  // namespace rwkv

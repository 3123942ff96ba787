// rwkv_engine::ln_shift, squared_relu_ and gate_residual on CUDA: check, allocate, launch, register. No arithmetic.
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

  void ln_shift(const LnShift& all) const { C10_CUDA_CHECK(cuda::ln_shift(all, stream)); }
  void squared_relu(float* k, int64_t n) const { C10_CUDA_CHECK(cuda::squared_relu(k, n, stream)); }
  void gate_residual(const float* x, const float* r, const float* y, int64_t n, float* out) const {
    C10_CUDA_CHECK(cuda::gate_residual(x, r, y, n, out, stream));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("ln_shift", &ln_shift<PrefillOnCuda>);
  m.impl("squared_relu_", &squared_relu<PrefillOnCuda>);
  m.impl("gate_residual", &gate_residual<PrefillOnCuda>);
}

}  // namespace rwkv

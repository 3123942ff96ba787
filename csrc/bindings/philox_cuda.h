// rwkv_engine::philox_uniform on CUDA: check, guard, launch on the current stream, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/draws.h"
#include "kernels/cuda/philox.h"

namespace rwkv {
namespace {

using at::Tensor;

Tensor philox_uniform(const Tensor& seeds, const Tensor& samples, const Tensor& positions) {
  const Tensor keys = draw_argument("seeds", seeds, seeds), high = draw_argument("samples", samples, seeds),
               low = draw_argument("positions", positions, seeds);
  const c10::cuda::CUDAGuard guard(seeds.device());
  Tensor out = at::empty(seeds.sizes(), seeds.options().dtype(at::kDouble));
  C10_CUDA_CHECK(cuda::philox_uniform(keys.const_data_ptr<int64_t>(), high.const_data_ptr<int64_t>(),
                                      low.const_data_ptr<int64_t>(), out.numel(), out.data_ptr<double>(),
                                      c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("philox_uniform", &philox_uniform); }

}  // namespace rwkv

// rwkv_engine::draw_tokens and most_likely on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/draw_tokens.h"
#include "kernels/cuda/draw_tokens.h"

namespace rwkv {
namespace {

struct DrawOnCuda {
  const c10::cuda::CUDAGuard guard;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();

  explicit DrawOnCuda(at::Device device) : guard(device) {}

  // `numbers`: a float64 tensor on the device.
  template <class Logit>
  void draw_tokens(const DrawTokens<Logit>& draw, const Tensor& numbers) const {
    Tensor scratch = at::empty({cuda::draw_scratch_numbers(draw.B, draw.V)}, numbers.options());
    C10_CUDA_CHECK(cuda::draw_tokens(draw, scratch.data_ptr<double>(), stream));
  }
};

Tensor most_likely(const Tensor& logits) {
  check_logits("rwkv_engine::most_likely", logits);
  const DrawOnCuda on(logits.device());
  const Tensor numbers = logits.contiguous();
  const int64_t B = logits.size(0), V = logits.size(1);
  Tensor ids = at::empty({B}, logits.options().dtype(at::kLong));
  if (logits.scalar_type() == at::kFloat)
    C10_CUDA_CHECK(cuda::most_likely(numbers.const_data_ptr<float>(), B, V, ids.data_ptr<int64_t>(), on.stream));
  else
    C10_CUDA_CHECK(cuda::most_likely(numbers.const_data_ptr<double>(), B, V, ids.data_ptr<int64_t>(), on.stream));
  return ids;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("draw_tokens", &draw_tokens<DrawOnCuda>);
  m.impl("most_likely", &most_likely);
}

}  // namespace rwkv

// rwkv_engine::blocks7_step on CUDA: check, allocate, launch, register. No arithmetic.
//
// The values of `slots` are not checked, because that would synchronise with the device, which a CUDA graph cannot.
#pragma once

#include <ATen/ops/cat.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "bindings/mixing7_steps.h"
#include "kernels/cuda/channel_mixing7_step.h"
#include "kernels/cuda/time_mixing7_step.h"

namespace rwkv {
namespace {

struct Layers7OnCuda {
  static void launch(const char* op, const std::vector<Block7Step>& layers, int64_t, const Tensor& x) {
    int64_t bytes = 0;
    for (const auto& [time, channel] : layers) {
      TORCH_CHECK(time.N <= cuda::kMostHeadChannels, op, ": r_k: expected heads of at most ", cuda::kMostHeadChannels,
                  " channels on CUDA, got ", time.N);
      for (const Matrix& factor : {time.a.second, time.g.second, time.v.second})
        TORCH_CHECK(factor.K == 0 || factor.format == time.w.second.format, op,
                    ": a2, g2, v2: expected the dtype of w2 on CUDA");
      bytes = std::max({bytes, cuda::scratch_bytes(time), cuda::scratch_bytes(channel)});
    }
    const c10::cuda::CUDAGuard guard(x.device());
    Tensor scratch = at::empty({bytes}, x.options().dtype(at::kByte));
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
    for (const auto& [time, channel] : layers) {
      C10_CUDA_CHECK(cuda::time_mixing7_step(time, scratch.data_ptr(), stream));
      C10_CUDA_CHECK(cuda::channel_mixing7_step(channel, scratch.data_ptr(), stream));
    }
  }
};

// With `before`, row by row: each begins from a copy of another row's state.
Tensor blocks7_step_on_cuda(const Tensor& x, const Tensor& first, double eps, at::TensorList parameters,
                            const ScalesList& scales, at::TensorList state, const Slots& slots, const Slots& before) {
  constexpr auto& step = blocks7_step<Layers7OnCuda>;
  if (!before || !slots) return step(x, first, eps, parameters, scales, state, slots, before);
  std::vector<Tensor> rows;
  for (int64_t b = 0; b < x.size(0); ++b) {
    const Tensor slot = slots->narrow(0, b, 1), origin = before->narrow(0, b, 1);
    for (const Tensor& field : state) Tensor(field).index_copy_(0, slot, field.index_select(0, origin));
    rows.push_back(step(x.narrow(0, b, 1), first.narrow(0, b, 1), eps, parameters, scales, state, slot, std::nullopt));
  }
  return rows.empty() ? x.clone() : at::cat(rows);
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("blocks7_step", &blocks7_step_on_cuda); }

}  // namespace rwkv

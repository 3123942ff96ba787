// rwkv_engine::advance_positions on CUDA: check, guard, launch on the current stream, register. No arithmetic.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/cuda/positions.h"

namespace rwkv {
namespace {

using at::Tensor;

// The values of `slots` are not checked, because that would synchronise with the device.
void advance_positions(const Tensor& positions, const Tensor& slots, const Tensor& after) {
  for (const Tensor& tensor : {positions, slots, after})
    TORCH_CHECK(tensor.dim() == 1 && tensor.scalar_type() == at::kLong && tensor.is_contiguous() &&
                    tensor.device() == positions.device(),
                "rwkv_engine::advance_positions: expected contiguous int64 vectors on ", positions.device(), ", got ",
                tensor.scalar_type(), " of shape ", tensor.sizes(), " on ", tensor.device());
  TORCH_CHECK(slots.sizes() == after.sizes(), "rwkv_engine::advance_positions: after: expected shape ", slots.sizes(),
              ", got ", after.sizes());
  const c10::cuda::CUDAGuard guard(positions.device());
  C10_CUDA_CHECK(cuda::advance_positions(positions.data_ptr<int64_t>(), slots.const_data_ptr<int64_t>(), slots.numel(),
                                         after.data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()));
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("advance_positions", &advance_positions); }

}  // namespace rwkv

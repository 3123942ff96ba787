// rwkv_engine::time_mixing4_step and channel_mixing4_step on CUDA: check, allocate, launch, register. No arithmetic.
//
// The values of `slots` are not checked, because that would synchronise with the device, which a CUDA graph cannot.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bindings/mixing4_steps.h"
#include "kernels/cuda/channel_mixing4_step.h"
#include "kernels/cuda/time_mixing4_step.h"

namespace rwkv {
namespace {

struct MixingOnCuda {
  template <class Step>
  static void launch(const char*, const Step& step, int64_t, const Tensor& x) {
    const c10::cuda::CUDAGuard guard(x.device());
    Tensor scratch = at::empty({cuda::scratch_bytes(step)}, x.options().dtype(at::kByte));
    C10_CUDA_CHECK(run(step, scratch.data_ptr(), c10::cuda::getCurrentCUDAStream()));
  }

 private:
  static cudaError_t run(const TimeMixing4Step& step, void* scratch, cudaStream_t stream) {
    return cuda::time_mixing4_step(step, scratch, stream);
  }
  static cudaError_t run(const ChannelMixing4Step& step, void* scratch, cudaStream_t stream) {
    return cuda::channel_mixing4_step(step, scratch, stream);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) {
  m.impl("time_mixing4_step", &time_mixing4_step<MixingOnCuda>);
  m.impl("channel_mixing4_step", &channel_mixing4_step<MixingOnCuda>);
}

}  // namespace rwkv

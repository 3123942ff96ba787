// RWKV-7's channel mixing is RWKV-4's without a receptance.
#include "kernels/cuda/channel_mixing7_step.h"

#include "kernels/cuda/channel_mixing4_step.h"

namespace rwkv::cuda {
namespace {

ChannelMixing4Step without_receptance(const ChannelMixing7Step& step) {
  return {
      .B = step.B,
      .C = step.C,
      .F = step.F,
      .x = step.x,
      .norm = step.norm,
      .mix_k = step.mix,
      .mix_r = nullptr,
      .key = step.key,
      .receptance = {step.key.format, nullptr, 0, step.C, nullptr, nullptr},
      .value = step.value,
      .shift = step.shift,
      .shift_stride = step.shift_stride,
      .slots = step.slots,
      .y = step.y,
  };
}

}  // namespace

int64_t scratch_bytes(const ChannelMixing7Step& step) { return scratch_bytes(without_receptance(step)); }

cudaError_t channel_mixing7_step(const ChannelMixing7Step& step, void* scratch, cudaStream_t stream) {
  return channel_mixing4_step(without_receptance(step), scratch, stream);
}

}  // namespace rwkv::cuda

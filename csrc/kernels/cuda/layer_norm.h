// What a LayerNorm is made of, on the device. Torch-free.
#pragma once

namespace rwkv::cuda {

struct LayerNorm {
  const float *weight, *bias;  // (C,)
  float eps;
};

}  // namespace rwkv::cuda

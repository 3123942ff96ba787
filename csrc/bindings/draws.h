// Code shared by the bindings of rwkv_engine::philox_uniform.
#pragma once

#include <ATen/core/Tensor.h>

namespace rwkv {

// Checks one of three int64 tensors (B,) on one device, and makes it contiguous.
inline at::Tensor draw_argument(const char* name, const at::Tensor& tensor, const at::Tensor& seeds) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.sizes() == seeds.sizes() && tensor.scalar_type() == at::kLong &&
                  tensor.device() == seeds.device(),
              "rwkv_engine::philox_uniform: ", name, ": expected int64 of shape (B,), as seeds, on ", seeds.device(),
              ", got ", tensor.scalar_type(), " of shape ", tensor.sizes(), " on ", tensor.device());
  return tensor.contiguous();
}

}  // namespace rwkv

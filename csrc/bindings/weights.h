// What bindings of operators with weights share: checks, and torch's dtypes as those of the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "kernels/tiles.h"

namespace rwkv {

// A device in messages.
inline std::string name_of(at::Device device) { return device.is_cpu() ? "the CPU" : device.str(); }

// A contiguous float32 tensor of this shape on `device`, where all of an operator's arguments are; `name` is the
// argument's.
inline at::Tensor float_argument(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                                 at::Device device) {
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ", tensor.sizes());
  TORCH_CHECK(tensor.device() == device && tensor.scalar_type() == at::kFloat, op, ": ", name, ": expected float32 on ",
              name_of(device), ", got ", tensor.scalar_type(), " on ", name_of(tensor.device()));
  return tensor.contiguous();
}

// A state's rows, replaced in place: (S, width) float32, numbers of a row next to each other.
inline float* state_argument(const char* op, const char* name, const at::Tensor& tensor, int64_t S, int64_t width,
                             at::Device device) {
  TORCH_CHECK(tensor.dim() == 2, op, ": ", name, ": expected shape (S, ", width, "), got ", tensor.sizes());
  float_argument(op, name, tensor.narrow(0, 0, 0), {0, width}, device);
  TORCH_CHECK(tensor.size(0) == S && tensor.stride(1) == 1, op, ": ", name, ": expected ", S,
              " rows without gaps inside them, got shape ", tensor.sizes(), " with strides ", tensor.strides());
  return tensor.data_ptr<float>();
}

// The state's row of each of B rows, contiguous int64 on the device of x; null without `slots`. Their values are not
// looked at.
inline const int64_t* slots_argument(const char* op, const std::optional<at::Tensor>& slots, const at::Tensor& x) {
  if (!slots) return nullptr;
  TORCH_CHECK(slots->sizes() == x.sizes().slice(0, 1) && slots->scalar_type() == at::kLong && slots->is_contiguous() &&
                  slots->device() == x.device(),
              op, ": slots: expected ", x.size(0), " contiguous int64 on ", x.device(), ", got ", slots->scalar_type(),
              " of shape ", slots->sizes(), " on ", slots->device());
  return slots->const_data_ptr<int64_t>();
}

inline int64_t group_inputs(const at::Tensor& weight) { return 4 / weight.element_size(); }

// Checks that `weight` holds an N x K matrix in tiles.
inline void check_tiles(const char* op, const char* name, const at::Tensor& weight, int64_t N, int64_t K,
                        at::Device device) {
  TORCH_CHECK(
      weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kBFloat16 || weight.scalar_type() == at::kHalf,
      op, ": ", name, ": expected float32, bfloat16 or float16, got ", weight.scalar_type());
  const int64_t inputs = kTileGroups * group_inputs(weight);
  const std::vector<int64_t> shape{tile_blocks(N), (K + inputs - 1) / inputs, kTileGroups, kTileRows,
                                   group_inputs(weight)};
  TORCH_CHECK(weight.sizes() == at::IntArrayRef(shape) && weight.is_contiguous() && weight.device() == device, op, ": ",
              name, ": expected ", N, " x ", K, " in contiguous tiles on ", name_of(device), ", of shape ",
              at::IntArrayRef(shape), ", got shape ", weight.sizes(), " on ", name_of(weight.device()));
  TORCH_CHECK(device.is_cpu() || reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0, op, ": ", name,
              ": expected tiles that begin at a multiple of 16 bytes");
}

// Checks that `weight` is a matrix (K, N) row after row.
inline void check_rows(const char* op, const char* name, const at::Tensor& weight, int64_t K, int64_t N,
                       at::Device device) {
  TORCH_CHECK(weight.sizes() == at::IntArrayRef({K, N}) && weight.is_contiguous() && weight.device() == device, op,
              ": ", name, ": expected contiguous (", K, ", ", N, ") on ", name_of(device), ", got shape ",
              weight.sizes(), " on ", name_of(weight.device()));
}

// Calls fn(Weight{}) with the kernels' type of a tensor's weights.
template <class Function>
void for_weight_type(const char* op, const at::Tensor& weight, const Function& fn) {
  switch (weight.scalar_type()) {
    case at::kFloat:
      return fn(float{});
    case at::kBFloat16:
      return fn(Bfloat16{});
    case at::kHalf:
      return fn(Float16{});
    default:
      TORCH_CHECK(false, op, ": weights: expected float32, bfloat16 or float16, got ", weight.scalar_type());
  }
}

template <class Weight>
const Weight* weights(const at::Tensor& tensor) {
  return static_cast<const Weight*>(tensor.const_data_ptr());
}

}  // namespace rwkv

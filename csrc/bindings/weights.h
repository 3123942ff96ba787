// Code shared by the bindings of operators with weights: checks, and the conversion of torch's dtypes to formats.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>

#include "kernels/matrix.h"

namespace rwkv {

// The name of a device, for messages.
inline std::string name_of(at::Device device) { return device.is_cpu() ? "the CPU" : device.str(); }

inline void check_float(const char* op, const char* name, const at::Tensor& tensor, at::Device device) {
  TORCH_CHECK(tensor.device() == device && tensor.scalar_type() == at::kFloat, op, ": ", name, ": expected float32 on ",
              name_of(device), ", got ", tensor.scalar_type(), " on ", name_of(tensor.device()));
}

// Checks that the argument `name` is float32 with this shape, on the device of the operator's other arguments, and
// makes it contiguous.
inline at::Tensor float_argument(const char* op, const char* name, const at::Tensor& tensor, at::IntArrayRef shape,
                                 at::Device device) {
  TORCH_CHECK(tensor.sizes() == shape, op, ": ", name, ": expected shape ", shape, ", got ", tensor.sizes());
  check_float(op, name, tensor, device);
  return tensor.contiguous();
}

// Checks the rows of a state, which are replaced in place: (S, width) float32, each row contiguous.
inline float* state_argument(const char* op, const char* name, const at::Tensor& tensor, int64_t S, int64_t width,
                             at::Device device) {
  TORCH_CHECK(tensor.dim() == 2 && tensor.size(1) == width, op, ": ", name, ": expected shape (S, ", width, "), got ",
              tensor.sizes());
  check_float(op, name, tensor, device);
  TORCH_CHECK(tensor.size(0) == S && tensor.stride(1) == 1, op, ": ", name, ": expected ", S,
              " rows without gaps inside them, got shape ", tensor.sizes(), " with strides ", tensor.strides());
  return tensor.data_ptr<float>();
}

// A row of the state for each of B rows, contiguous int64 on the device of x; null without `slots`. Their values are
// not checked.
inline const int64_t* slots_argument(const char* op, const char* name, const std::optional<at::Tensor>& slots,
                                     const at::Tensor& x) {
  if (!slots) return nullptr;
  TORCH_CHECK(slots->sizes() == x.sizes().slice(0, 1) && slots->scalar_type() == at::kLong && slots->is_contiguous() &&
                  slots->device() == x.device(),
              op, ": ", name, ": expected ", x.size(0), " contiguous int64 on ", x.device(), ", got ",
              slots->scalar_type(), " of shape ", slots->sizes(), " on ", slots->device());
  return slots->const_data_ptr<int64_t>();
}

inline Format format_of(const char* op, const char* name, const at::Tensor& weight) {
  switch (weight.scalar_type()) {
    case at::kFloat:
      return Format::fp32;
    case at::kBFloat16:
      return Format::bf16;
    case at::kHalf:
      return Format::fp16;
    case at::kChar:
      return Format::int8;
    case at::kByte:
      return Format::int4;
    default:
      TORCH_CHECK(false, op, ": ", name, ": expected float32, bfloat16, float16, int8 or uint8 (int4), got ",
                  weight.scalar_type());
  }
}

// Checks that `weight` is an (N, K) matrix in tiles.
inline void check_tiles(const char* op, const char* name, const at::Tensor& weight, int64_t N, int64_t K,
                        at::Device device) {
  const bool is_int4 = format_of(op, name, weight) == Format::int4;
  const int64_t group = 4 / weight.element_size(), inputs = is_int4 ? kInt4Inputs : kTileGroups * group;
  const std::array<int64_t, 5> shape{tile_blocks(N), (K + inputs - 1) / inputs, is_int4 ? kInt4Words : kTileGroups,
                                     kTileRows, group};
  TORCH_CHECK(weight.sizes() == at::IntArrayRef(shape) && weight.is_contiguous() && weight.device() == device, op, ": ",
              name, ": expected ", N, " x ", K, " in contiguous tiles on ", name_of(device), ", of shape ",
              at::IntArrayRef(shape), ", got shape ", weight.sizes(), " on ", name_of(weight.device()));
  TORCH_CHECK(device.is_cpu() || reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0, op, ": ", name,
              ": expected tiles that begin at a multiple of 16 bytes");
}

// The scales of a matrix, if it has any.
using Scales = std::optional<at::Tensor>;

// W (N, K) and its scales: for int8 weights those of the N rows, then of the K columns; for int4 weights those of the
// columns.
inline Matrix with_scales(const char* op, const char* name, const at::Tensor& weight, int64_t N, int64_t K,
                          const Scales& scales) {
  const Format format = format_of(op, name, weight);
  const bool has_rows = format == Format::int8;
  if (!has_rows && format != Format::int4) {
    TORCH_CHECK(!scales, op, ": ", name, ": scales belong to int8 and int4 weights, got ", weight.scalar_type());
    return {format, weight.const_data_ptr(), N, K, nullptr, nullptr};
  }
  TORCH_CHECK(scales, op, ": ", name, ": ", has_rows ? "int8" : "int4", " weights need their scales");
  TORCH_CHECK(scales->is_contiguous(), op, ": ", name, ": expected contiguous scales");
  const int64_t size = has_rows ? N + K : K;
  const float* const first = float_argument(op, name, *scales, {size}, weight.device()).const_data_ptr<float>();
  return {format, weight.const_data_ptr(), N, K, has_rows ? first : nullptr, first + size - K};
}

// An argument that is a matrix in tiles.
inline Matrix tiles_argument(const char* op, const char* name, const at::Tensor& weight, int64_t N, int64_t K,
                             const Scales& scales, at::Device device) {
  check_tiles(op, name, weight, N, K, device);
  return with_scales(op, name, weight, N, K, scales);
}

// An argument that is W^T row-major, (K, N), or (K, bytes of a row) with int4 weights.
inline Matrix rows_argument(const char* op, const char* name, const at::Tensor& weight, int64_t N, int64_t K,
                            const Scales& scales, at::Device device) {
  const bool is_int4 = format_of(op, name, weight) == Format::int4;
  const int64_t width = is_int4 ? int4_row_bytes(N) : N;
  TORCH_CHECK(weight.sizes() == at::IntArrayRef({K, width}) && weight.is_contiguous() && weight.device() == device, op,
              ": ", name, ": expected contiguous (", K, ", ", width, ") on ", name_of(device), ", got shape ",
              weight.sizes(), " on ", name_of(weight.device()));
  TORCH_CHECK(!is_int4 || device.is_cpu() || reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0, op, ": ",
              name, ": expected rows that begin at a multiple of 16 bytes");
  return with_scales(op, name, weight, N, K, scales);
}

}  // namespace rwkv

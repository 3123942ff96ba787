// Code shared by the bindings of tile, untile and linear: check arguments, allocate, call the kernel.
//
// Device(device) has tile and untile for one type of weights, and linear.
#pragma once

#include <ATen/ops/empty.h>

#include <type_traits>

#include "bindings/weights.h"

namespace rwkv {

using at::Tensor;

// Calls fn with the type of weights that have the tiles of kernels/tiles.h's first layout, which int4 weights have not.
template <class Function>
void for_tiled(const char* op, const char* name, const Tensor& tiled, const Function& fn) {
  const Format format = format_of(op, name, tiled);
  TORCH_CHECK(format != Format::int4, op, ": ", name, ": int4 weights have other tiles; use rwkv_engine.ops.int4");
  for_format(format, [&]<class Weight>(Weight weight) {
    if constexpr (!std::is_same_v<Weight, Int4>) fn(weight);
  });
}

template <class Device>
void tile(const Tensor& weight, const Tensor& tiles) {
  static constexpr char op[] = "rwkv_engine::tile";
  TORCH_CHECK(weight.dim() == 2, op, ": weight: expected a matrix (N, K), got shape ", weight.sizes());
  TORCH_CHECK(weight.scalar_type() == tiles.scalar_type() && weight.device() == tiles.device(), op,
              ": weight: expected ", tiles.scalar_type(), " on ", name_of(tiles.device()), ", as tiles, got ",
              weight.scalar_type(), " on ", name_of(weight.device()));
  const int64_t N = weight.size(0), K = weight.size(1);
  check_tiles(op, "tiles", tiles, N, K, weight.device());
  const Tensor matrix = weight.contiguous();
  for_tiled(op, "weight", weight, [&]<class Weight>(Weight) {
    Device(weight.device())
        .tile(static_cast<const Weight*>(matrix.const_data_ptr()), N, K, static_cast<Weight*>(tiles.data_ptr()));
  });
}

template <class Device>
Tensor untile(const Tensor& tiles, int64_t outputs, int64_t inputs) {
  static constexpr char op[] = "rwkv_engine::untile";
  check_tiles(op, "tiles", tiles, outputs, inputs, tiles.device());
  Tensor weight = at::empty({outputs, inputs}, tiles.options());
  for_tiled(op, "tiles", tiles, [&]<class Weight>(Weight) {
    Device(tiles.device())
        .untile(static_cast<const Weight*>(tiles.const_data_ptr()), outputs, inputs,
                static_cast<Weight*>(weight.data_ptr()));
  });
  return weight;
}

template <class Device>
Tensor linear(const Tensor& x, const Tensor& tiles, int64_t outputs, const Scales& scales) {
  static constexpr char op[] = "rwkv_engine::linear";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, K), got ", x.sizes());
  const int64_t B = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {B, K}, x.device());
  const Matrix matrix = tiles_argument(op, "tiles", tiles, outputs, K, scales, x.device());
  Tensor y = at::empty({B, outputs}, x.options());
  Device(x.device()).linear(rows, matrix, y);
  return y;
}

}  // namespace rwkv

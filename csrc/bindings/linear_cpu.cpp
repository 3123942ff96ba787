// rwkv_engine::tile, untile, linear and linear_many on the CPU: check, allocate, launch, register. No arithmetic.
#include "kernels/cpu/linear.h"

#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bindings/parallel.h"
#include "bindings/weights.h"
#include "kernels/cpu/linear_many.h"
#include "kernels/cpu/tiles.h"

namespace rwkv {
namespace {

using at::Tensor;

void tile(const Tensor& weight, const Tensor& tiles) {
  static constexpr char op[] = "rwkv_engine::tile";
  TORCH_CHECK(weight.dim() == 2, op, ": weight: expected a matrix (N, K), got shape ", weight.sizes());
  TORCH_CHECK(weight.scalar_type() == tiles.scalar_type() && weight.device().is_cpu(), op, ": weight: expected ",
              tiles.scalar_type(), " on the CPU, as tiles, got ", weight.scalar_type(), " on ", weight.device());
  const int64_t N = weight.size(0), K = weight.size(1);
  check_tiles(op, "tiles", tiles, N, K);
  const Tensor matrix = weight.contiguous();
  for_weight_type(op, weight, [&]<class Weight>(Weight) {
    cpu::tile(weights<Weight>(matrix), N, K, static_cast<Weight*>(tiles.data_ptr()), torch_threads(1));
  });
}

Tensor untile(const Tensor& tiles, int64_t outputs, int64_t inputs) {
  static constexpr char op[] = "rwkv_engine::untile";
  check_tiles(op, "tiles", tiles, outputs, inputs);
  Tensor weight = at::empty({outputs, inputs}, tiles.options());
  for_weight_type(op, tiles, [&]<class Weight>(Weight) {
    cpu::untile(weights<Weight>(tiles), outputs, inputs, static_cast<Weight*>(weight.data_ptr()), torch_threads(1));
  });
  return weight;
}

Tensor linear(const Tensor& x, const Tensor& tiles, int64_t outputs) {
  static constexpr char op[] = "rwkv_engine::linear";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (B, K), got ", x.sizes());
  const int64_t B = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {B, K});
  check_tiles(op, "tiles", tiles, outputs, K);
  Tensor y = at::empty({B, outputs}, x.options());
  for_weight_type(op, tiles, [&]<class Weight>(Weight) {
    const int64_t missing = tiles_per_block<Weight>(K) * kTileInputs<Weight> - K;
    const Tensor padded = missing ? at::constant_pad_nd(rows, {0, missing}) : rows;
    cpu::linear(padded.const_data_ptr<float>(), weights<Weight>(tiles), B, outputs, K, y.data_ptr<float>(),
                torch_threads(1));
  });
  return y;
}

Tensor linear_many(const Tensor& x, const Tensor& weight, int64_t outputs) {
  static constexpr char op[] = "rwkv_engine::linear_many";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (M, K), got ", x.sizes());
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {M, K});
  const bool in_tiles = weight.dim() != 2;
  if (in_tiles)
    check_tiles(op, "weight", weight, outputs, K);
  else
    check_rows(op, "weight", weight, K, outputs);
  Tensor y = at::empty({M, outputs}, rows.options());
  for_weight_type(op, weight, [&]<class Weight>(Weight) {
    const cpu::LinearMany<Weight> linear{
        M, outputs, K, rows.const_data_ptr<float>(), weights<Weight>(weight), in_tiles, y.data_ptr<float>()};
    Tensor scratch = at::empty({linear.scratch()}, rows.options().dtype(at::kByte));
    cpu::linear_many(linear, scratch.data_ptr(), torch_threads(1));
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("tile", &tile);
  m.impl("untile", &untile);
  m.impl("linear", &linear);
  m.impl("linear_many", &linear_many);
}

}  // namespace rwkv

// rwkv_engine::tile, untile, linear and linear_many on the CPU: check, allocate, launch, register. No arithmetic.
#include "bindings/linear.h"

#include <ATen/ops/constant_pad_nd.h>
#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_many.h"
#include "kernels/cpu/tiles.h"

namespace rwkv {
namespace {

struct Cpu {
  explicit Cpu(at::Device) {}

  template <class Weight>
  void tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles) const {
    cpu::tile(matrix, N, K, tiles, torch_threads(1));
  }
  template <class Weight>
  void untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix) const {
    cpu::untile(tiles, N, K, matrix, torch_threads(1));
  }
  template <class Weight>
  void linear(const Tensor& x, const Weight* tiles, const Tensor& y) const {
    const int64_t K = x.size(1), missing = tiles_per_block<Weight>(K) * kTileInputs<Weight> - K;
    const Tensor padded = missing ? at::constant_pad_nd(x, {0, missing}) : x;
    cpu::linear(padded.const_data_ptr<float>(), tiles, x.size(0), y.size(1), K, y.data_ptr<float>(), torch_threads(1));
  }
};

Tensor linear_many(const Tensor& x, const Tensor& weight, int64_t outputs) {
  static constexpr char op[] = "rwkv_engine::linear_many";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (M, K), got ", x.sizes());
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {M, K}, x.device());
  const bool in_tiles = weight.dim() != 2;
  if (in_tiles)
    check_tiles(op, "weight", weight, outputs, K, x.device());
  else
    check_rows(op, "weight", weight, K, outputs, x.device());
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
  m.impl("tile", &tile<Cpu>);
  m.impl("untile", &untile<Cpu>);
  m.impl("linear", &linear<Cpu>);
  m.impl("linear_many", &linear_many);
}

}  // namespace rwkv

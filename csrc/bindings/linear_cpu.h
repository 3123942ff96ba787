// rwkv_engine::tile, untile, linear and linear_many on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include "bindings/linear.h"

#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_many.h"
#include "kernels/cpu/tiles.h"

namespace rwkv {
namespace {

struct LinearOnCpu {
  explicit LinearOnCpu(at::Device) {}

  template <class Weight>
  void tile(const Weight* matrix, int64_t N, int64_t K, Weight* tiles) const {
    cpu::tile(matrix, N, K, tiles, torch_threads);
  }
  template <class Weight>
  void untile(const Weight* tiles, int64_t N, int64_t K, Weight* matrix) const {
    cpu::untile(tiles, N, K, matrix, torch_threads);
  }
  void linear(const Tensor& x, const Matrix& matrix, const Tensor& y) const {
    const cpu::Linear linear{x.size(0), x.const_data_ptr<float>(), matrix, y.data_ptr<float>()};
    Tensor scratch = at::empty({linear.scratch_bytes()}, x.options().dtype(at::kByte));
    cpu::linear(linear, scratch.data_ptr(), torch_threads);
  }
};

Tensor linear_many(const Tensor& x, const Tensor& weight, int64_t outputs, const Scales& scales) {
  static constexpr char op[] = "rwkv_engine::linear_many";
  TORCH_CHECK(x.dim() == 2, op, ": x: expected shape (M, K), got ", x.sizes());
  const int64_t M = x.size(0), K = x.size(1);
  const Tensor rows = float_argument(op, "x", x, {M, K}, x.device());
  const bool in_tiles = weight.dim() != 2;
  const auto argument = in_tiles ? &tiles_argument : &rows_argument;
  const Matrix matrix = argument(op, "weight", weight, outputs, K, scales, x.device());
  Tensor y = at::empty({M, outputs}, rows.options());
  const cpu::LinearMany linear{M, rows.const_data_ptr<float>(), matrix, in_tiles, y.data_ptr<float>()};
  Tensor scratch = at::empty({linear.scratch_bytes()}, rows.options().dtype(at::kByte));
  cpu::linear_many(linear, scratch.data_ptr(), torch_threads);
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) {
  m.impl("tile", &tile<LinearOnCpu>);
  m.impl("untile", &untile<LinearOnCpu>);
  m.impl("linear", &linear<LinearOnCpu>);
  m.impl("linear_many", &linear_many);
}

}  // namespace rwkv

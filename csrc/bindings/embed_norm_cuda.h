// rwkv_engine::embed_norm on CUDA: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "bindings/weights.h"
#include "kernels/cuda/embed_norm.h"

namespace rwkv {
namespace {

using at::Tensor;

// The values of `tokens` and `slots` are not checked, because that would synchronise with the device.
Tensor embed_norm(const Tensor& tokens, const Tensor& table, const Tensor& ln_weight, const Tensor& ln_bias, double eps,
                  const std::optional<Tensor>& positions, const std::optional<Tensor>& slots,
                  const std::optional<Tensor>& after) {
  static constexpr char op[] = "rwkv_engine::embed_norm";
  const at::Device device = tokens.device();
  TORCH_CHECK(tokens.dim() == 1 && tokens.scalar_type() == at::kLong, op,
              ": tokens: expected int64 of shape (B,), got ", tokens.scalar_type(), " of shape ", tokens.sizes());
  TORCH_CHECK(table.dim() == 2 && table.is_contiguous() && table.device() == device, op,
              ": table: expected contiguous (V, C) on ", device, ", got shape ", table.sizes(), " on ", table.device());
  const int64_t B = tokens.size(0), C = table.size(1);
  const Tensor ids = tokens.contiguous(), weight = float_argument(op, "ln_weight", ln_weight, {C}, device),
               bias = float_argument(op, "ln_bias", ln_bias, {C}, device);
  const LayerNorm norm{weight.const_data_ptr<float>(), bias.const_data_ptr<float>(), static_cast<float>(eps)};
  cuda::Counted counted{};
  if (positions) {
    TORCH_CHECK(slots && after, op, ": positions: expected slots and after as well");
    for (const Tensor& tensor : {*positions, *slots, *after})
      TORCH_CHECK(
          tensor.dim() == 1 && tensor.scalar_type() == at::kLong && tensor.is_contiguous() && tensor.device() == device,
          op, ": positions, slots, after: expected contiguous int64 vectors on ", device, ", got ",
          tensor.scalar_type(), " of shape ", tensor.sizes(), " on ", tensor.device());
    TORCH_CHECK(slots->numel() == B && after->numel() == B, op, ": slots, after: expected shape (", B, ",), got ",
                slots->sizes(), " and ", after->sizes());
    counted = {positions->data_ptr<int64_t>(), slots->const_data_ptr<int64_t>(), after->data_ptr<int64_t>()};
  }
  const c10::cuda::CUDAGuard guard(device);
  Tensor out = at::empty({B, C}, weight.options());
  const auto launch = [&]<class Number>(Number) {
    C10_CUDA_CHECK(cuda::embed_norm(ids.const_data_ptr<int64_t>(), B,
                                    static_cast<const Number*>(table.const_data_ptr()), C, norm, counted,
                                    out.data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  };
  switch (table.scalar_type()) {
    case at::kFloat:
      launch(float{});
      break;
    case at::kBFloat16:
      launch(Bfloat16{});
      break;
    case at::kHalf:
      launch(Float16{});
      break;
    default:
      TORCH_CHECK(false, op, ": table: expected float32, bfloat16 or float16, got ", table.scalar_type());
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CUDA, m) { m.impl("embed_norm", &embed_norm); }

}  // namespace rwkv

// rwkv_engine::draw_tokens on the CPU: check, allocate, launch, register. No arithmetic.
#pragma once

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bindings/parallel.h"
#include "kernels/cpu/draw_tokens.h"

namespace rwkv {
namespace {

using at::Tensor;

Tensor draw_tokens(const Tensor& logits, const Tensor& temperatures, const Tensor& top_k, const Tensor& top_p,
                   const Tensor& min_p, const Tensor& draws) {
  const auto type = logits.scalar_type();
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && (type == at::kFloat || type == at::kDouble),
              "rwkv_engine::draw_tokens: logits: expected float32 or float64 of shape (B, V), V > 0, got ", type,
              " of shape ", logits.sizes());
  const int64_t B = logits.size(0);
  const auto of_rows = [&](const char* name, const Tensor& tensor, at::ScalarType expected) {
    TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == B && tensor.scalar_type() == expected && tensor.is_cpu(),
                "rwkv_engine::draw_tokens: ", name, ": expected ", expected, " of shape (", B, ",) on the CPU, got ",
                tensor.scalar_type(), " of shape ", tensor.sizes(), " on ", tensor.device());
    return tensor.contiguous();
  };
  const Tensor numbers = logits.contiguous(), temperature = of_rows("temperatures", temperatures, at::kDouble),
               k = of_rows("top_k", top_k, at::kLong), p = of_rows("top_p", top_p, at::kDouble),
               least = of_rows("min_p", min_p, at::kDouble), draw = of_rows("draws", draws, at::kDouble);
  Tensor ids = at::empty({B}, k.options());
  const auto launch = [&]<class Logit>(Logit) {
    cpu::draw_tokens(
        cpu::DrawTokens<Logit>{B, logits.size(1), numbers.const_data_ptr<Logit>(), temperature.const_data_ptr<double>(),
                               p.const_data_ptr<double>(), least.const_data_ptr<double>(),
                               draw.const_data_ptr<double>(), k.const_data_ptr<int64_t>(), ids.data_ptr<int64_t>()},
        torch_threads);
  };
  type == at::kFloat ? launch(float{}) : launch(double{});
  return ids;
}

}  // namespace

TORCH_LIBRARY_IMPL(rwkv_engine, CPU, m) { m.impl("draw_tokens", &draw_tokens); }

}  // namespace rwkv

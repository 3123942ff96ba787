// rwkv_engine::draw_tokens and most_likely: checks and allocates, for all devices. No arithmetic.
//
// Device(device) has the kernels of these names.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <vector>

#include "kernels/draw_tokens.h"

namespace rwkv {

using at::Tensor;

inline void check_logits(const char* op, const Tensor& logits) {
  const auto type = logits.scalar_type();
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0 && (type == at::kFloat || type == at::kDouble), op,
              ": logits: expected float32 or float64 of shape (B, V), V > 0, got ", type, " of shape ", logits.sizes());
}

template <class Device>
Tensor draw_tokens(const Tensor& logits, const Tensor& temperatures, const Tensor& top_k, const Tensor& top_p,
                   const Tensor& min_p, at::TensorList draws, const std::optional<Tensor>& allowed) {
  static constexpr char op[] = "rwkv_engine::draw_tokens";
  check_logits(op, logits);
  const int64_t B = logits.size(0);
  const auto of_rows = [&](const char* name, const Tensor& tensor, at::ScalarType expected) {
    TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == B && tensor.scalar_type() == expected &&
                    tensor.device() == logits.device(),
                op, ": ", name, ": expected ", expected, " of shape (", B, ",) on ", logits.device(),
                " as logits, got ", tensor.scalar_type(), " of shape ", tensor.sizes(), " on ", tensor.device());
    return tensor.contiguous();
  };
  const Tensor numbers = logits.contiguous(), temperature = of_rows("temperatures", temperatures, at::kDouble),
               k = of_rows("top_k", top_k, at::kLong), p = of_rows("top_p", top_p, at::kDouble),
               least = of_rows("min_p", min_p, at::kDouble);
  const bool are_numbers = draws.size() == 1;  // otherwise they are seeds, samples and positions
  TORCH_CHECK(are_numbers || draws.size() == 3, op,
              ": draws: expected one tensor, or seeds, samples and positions, got ", draws.size());
  std::vector<Tensor> keys;
  for (const Tensor& key : draws) keys.push_back(of_rows("draws", key, are_numbers ? at::kDouble : at::kLong));
  const auto key = [&](int i) { return are_numbers ? nullptr : keys[i].const_data_ptr<int64_t>(); };
  const int64_t n_words = mask_words(logits.size(1));
  TORCH_CHECK(!allowed || (allowed->scalar_type() == at::kInt && allowed->sizes() == at::IntArrayRef{B, n_words} &&
                           allowed->device() == logits.device()),
              op, ": allowed: expected Int of shape (", B, ", ", n_words, ") on ", logits.device(), " as logits, got ",
              allowed->scalar_type(), " of shape ", allowed->sizes(), " on ", allowed->device());
  const Tensor words = allowed ? allowed->contiguous() : Tensor();
  const Device on(logits.device());
  Tensor ids = at::empty({B}, k.options());
  const auto launch = [&]<class Logit>(Logit) {
    on.draw_tokens(
        DrawTokens<Logit>{B, logits.size(1), numbers.const_data_ptr<Logit>(), temperature.const_data_ptr<double>(),
                          p.const_data_ptr<double>(), least.const_data_ptr<double>(),
                          are_numbers ? keys[0].const_data_ptr<double>() : nullptr, k.const_data_ptr<int64_t>(),
                          ids.data_ptr<int64_t>(), key(0), key(1), key(2),
                          allowed ? words.const_data_ptr<int32_t>() : nullptr},
        temperature);
  };
  logits.scalar_type() == at::kFloat ? launch(float{}) : launch(double{});
  return ids;
}

}  // namespace rwkv

// The classes PreparedLayers4 and PreparedLayers7 of the CPU library: all layers of a model, whose parameters are
// checked and converted once instead of for every token. Hundreds of tensors lie in no cache after a token that has
// read all weights, so looking at them takes as long as reading megabytes. No arithmetic.
#pragma once

#include <torch/custom_class.h>
#include <torch/library.h>

#include "bindings/mixing4_steps_cpu.h"
#include "bindings/mixing7_steps.h"
#include "bindings/parallel.h"
#include "kernels/cpu/blocks7_step.h"

namespace rwkv {
namespace {

// What layers of both versions need of one token: x (B, C), the state's whole fields (S, L, ...), and slots.
class TokenArguments {
 public:
  TokenArguments(const char* op, const Tensor& x, int64_t C, const std::vector<Tensor>& state, size_t fields,
                 int64_t layers, const Slots& slots, const Slots& before)
      : B(x.dim() == 2 ? x.size(0) : 0), op_(op), layers_(layers), state_(state) {
    TORCH_CHECK(x.dim() == 2 && x.size(1) == C && x.is_contiguous(), op, ": x: expected contiguous (B, ", C, "), got ",
                x.sizes());
    check_float(op, "x", x, at::kCPU);
    TORCH_CHECK(state.size() == fields, op, ": state: expected ", fields, " fields, got ", state.size());
    this->x = x.const_data_ptr<float>();
    this->slots = slots_argument(op, "slots", slots, x), this->before = slots_argument(op, "before", before, x);
    TORCH_CHECK(slots || !before, op, ": before: expected none without slots");
    const int64_t S = slots ? state[0].size(0) : B;
    check_slots(op, "slots", this->slots, B, S), check_slots(op, "before", this->before, B, S);
    rows_ = S;
  }

  // The state of layer 0 in field i, each layer's of this shape; that of the next layer follows it.
  float* field(size_t i, at::IntArrayRef shape) const {
    std::vector<int64_t> expected{rows_, layers_};
    expected.insert(expected.end(), shape.begin(), shape.end());
    TORCH_CHECK(state_[i].sizes() == at::IntArrayRef(expected) && state_[i].is_contiguous(), op_, ": state: field ", i,
                ": expected contiguous ", at::IntArrayRef(expected), ", got shape ", state_[i].sizes());
    check_float(op_, "state", state_[i], at::kCPU);
    return state_[i].data_ptr<float>();
  }

  const int64_t B;
  const float* x;
  const int64_t *slots, *before;

 private:
  const char* const op_;
  const int64_t layers_;
  const std::vector<Tensor>& state_;
  int64_t rows_;
};

// No rows, from which layers are converted before there is a token.
struct NoRows {
  explicit NoRows(int64_t C) : x(at::empty({0, C}, at::kFloat)), slots(at::empty({0}, at::kLong)) {}
  static Tensor state(at::IntArrayRef shape) { return at::empty(shape, at::kFloat); }
  Tensor x, slots;
};

// Runs all layers over a token; `fill(layer, i)` completes the arguments of layer i but x and y.
template <class Step, class Fill, class Kernel>
Tensor run_prepared(std::vector<Step> layers, const TokenArguments& token, int64_t C, const Fill& fill,
                    const Kernel& kernel) {
  Tensor y = at::empty({token.B, C}, at::kFloat), between = at::empty({token.B, C}, at::kFloat);
  for (size_t i = 0; i < layers.size(); ++i) {
    Step& layer = layers[i];
    layer.time.B = layer.channel.B = token.B;
    layer.time.slots = layer.channel.slots = token.slots;
    layer.time.before = layer.channel.before = token.before;
    layer.time.x = i > 0 ? y.const_data_ptr<float>() : token.x;
    layer.time.y = between.data_ptr<float>();
    layer.channel.x = between.const_data_ptr<float>();
    layer.channel.y = y.data_ptr<float>();
    fill(layer, static_cast<int64_t>(i));
  }
  Tensor scratch = at::empty({cpu::scratch_bytes(layers)}, at::kByte);
  torch_team(cpu::largest_loop(layers), [&](const cpu::Run& run) { kernel(layers, scratch.data_ptr(), run); });
  return y;
}

class PreparedLayers4 : public torch::CustomClassHolder {
 public:
  PreparedLayers4(const std::vector<Tensor>& parameters, const ScalesList& scales, double eps)
      : scales_(scales.copy()), C_(parameters.at(0).size(0)), none_(C_), arguments_(kOp, none_.x, none_.slots) {
    const auto L = static_cast<int64_t>(parameters.size()) / kParameters;
    TORCH_CHECK(static_cast<int64_t>(scales.size()) == L * kScales, kOp, ": expected ", kScales, " scales a layer");
    for (int64_t i = 0; i < L; ++i) {
      const auto p = at::TensorList(parameters).slice(i * kParameters, kParameters);
      const auto scale = [&](int64_t j) { return scales_.get(i * kScales + j); };
      const Tensor shift = NoRows::state({0, C_}), wkv = NoRows::state({0, p[5].size(0)});
      layers_.push_back({arguments_.time(p[0], p[1], eps, p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], shift,
                                         wkv, wkv, wkv, {scale(0), scale(1), scale(2), scale(3)}),
                         arguments_.channel(p[11], p[12], eps, p[13], p[14], p[15], p[16], p[17], shift,
                                            {scale(4), scale(5), scale(6)})});
    }
    kept_ = parameters;
  }

  // `state`: the whole fields of `Blocks4Step`, (S, L, C) or (S, L, A) each; replaced in place.
  Tensor step(const Tensor& x, const std::vector<Tensor>& state, const Slots& slots, const Slots& before) const {
    const int64_t L = layers_.size(), A = layers_[0].time.A;
    const TokenArguments token(kOp, x, C_, state, kStates, L, slots, before);
    float *const shift = token.field(0, {C_}), *const num = token.field(1, {A}), *const den = token.field(2, {A}),
                 *const max = token.field(3, {A}), *const ffn_shift = token.field(4, {C_});
    return run_prepared(
        layers_, token, C_,
        [=, this](Block4Step& layer, int64_t i) {
          layer.time.shift = shift + i * C_, layer.channel.shift = ffn_shift + i * C_;
          layer.time.num = num + i * A, layer.time.den = den + i * A, layer.time.max = max + i * A;
          layer.time.shift_stride = layer.channel.shift_stride = L * C_, layer.time.wkv_stride = L * A;
        },
        [](const auto& layers, void* scratch, const cpu::Run& run) { cpu::blocks4_step(layers, scratch, run); });
  }

 private:
  static constexpr char kOp[] = "rwkv_engine::PreparedLayers4";
  const ScalesList scales_;
  const int64_t C_;
  const NoRows none_;
  StepArguments arguments_;  // keeps what it made contiguous
  std::vector<Tensor> kept_;
  std::vector<Block4Step> layers_;  // without a token's arguments
};

class PreparedLayers7 : public torch::CustomClassHolder {
 public:
  PreparedLayers7(const std::vector<Tensor>& parameters, const ScalesList& scales, double eps)
      : scales_(scales.copy()),
        C_(parameters.at(0).size(0)),
        H_(parameters.at(16).size(0)),
        N_(parameters.at(16).size(1)),
        none_(C_),
        arguments_(kOp, none_.x, at::empty({0, H_ * N_}, at::kFloat), none_.slots, {}) {
    const auto L = static_cast<int64_t>(parameters.size()) / kParameters7;
    TORCH_CHECK(static_cast<int64_t>(scales.size()) == L * kScales7, kOp, ": expected ", kScales7, " scales a layer");
    const std::vector<Tensor> state{NoRows::state({0, C_}), NoRows::state({0, H_, N_, N_}), NoRows::state({0, C_})};
    for (int64_t i = 0; i < L; ++i) {
      const auto p = at::TensorList(parameters).slice(i * kParameters7, kParameters7);
      std::array<Scales, kScales7> own{};
      for (int64_t j = 0; j < kScales7; ++j) own[j] = scales_.get(i * kScales7 + j);
      layers_.push_back({arguments_.time(p, state, own, eps), arguments_.channel(p, state, own, eps)});
    }
    kept_ = parameters;
  }

  // `state`: the whole fields of `Blocks7Step`, (S, L, C), (S, L, H, N, N) and (S, L, C); replaced in place. `first`:
  // (B, A), which the first of the layers writes.
  Tensor step(const Tensor& x, const Tensor& first, const std::vector<Tensor>& state, const Slots& slots,
              const Slots& before) const {
    const int64_t L = layers_.size(), A = H_ * N_, matrix = A * N_;
    const TokenArguments token(kOp, x, C_, state, kStates7, L, slots, before);
    TORCH_CHECK(first.sizes() == at::IntArrayRef({token.B, A}) && first.is_contiguous(), kOp,
                ": first: expected contiguous (", token.B, ", ", A, "), got ", first.sizes());
    check_float(kOp, "first", first, at::kCPU);
    float *const shift = token.field(0, {C_}), *const wkv = token.field(1, {H_, N_, N_}),
                 *const ffn_shift = token.field(2, {C_}), *const values = first.data_ptr<float>();
    return run_prepared(
        layers_, token, C_,
        [=, this](Block7Step& layer, int64_t i) {
          layer.time.first = values;
          layer.time.shift = shift + i * C_, layer.channel.shift = ffn_shift + i * C_;
          layer.time.wkv = wkv + i * matrix, layer.time.wkv_stride = L * matrix;
          layer.time.shift_stride = layer.channel.shift_stride = L * C_;
        },
        [](const auto& layers, void* scratch, const cpu::Run& run) { cpu::blocks7_step(layers, scratch, run); });
  }

 private:
  static constexpr char kOp[] = "rwkv_engine::PreparedLayers7";
  const ScalesList scales_;
  const int64_t C_, H_, N_;
  const NoRows none_;
  Step7Arguments arguments_;  // keeps what it made contiguous
  std::vector<Tensor> kept_;
  std::vector<Block7Step> layers_;  // without a token's arguments
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(rwkv_engine, m) {
  m.class_<PreparedLayers4>("PreparedLayers4")
      .def(torch::init<const std::vector<Tensor>&, const ScalesList&, double>())
      .def("step", &PreparedLayers4::step);
  m.class_<PreparedLayers7>("PreparedLayers7")
      .def(torch::init<const std::vector<Tensor>&, const ScalesList&, double>())
      .def("step", &PreparedLayers7::step);
}

}  // namespace rwkv

// Code shared by the bindings of blocks7_step: check arguments, allocate, fill in the kernels' arguments.
//
// Device::launch(op, layers, S, x) runs the layers, of which there is at least one, over a state of S rows.
#pragma once

#include "bindings/mixing4_steps.h"
#include "kernels/mixing7_steps.h"

namespace rwkv {

// What a layer contributes to the lists of blocks7_step.
constexpr int64_t kParameters7 = 28, kScales7 = 6, kStates7 = 3;

// The arguments of RWKV-7's layers.
class Step7Arguments : public StepArguments {
 public:
  Step7Arguments(const char* op, const Tensor& x, const Tensor& first, const Slots& slots, const Slots& before)
      : StepArguments(op, x, slots, before) {
    TORCH_CHECK(first.dim() == 2 && first.size(0) == B_ && first.is_contiguous(), op, ": first: expected contiguous (",
                B_, ", A), got shape ", first.sizes());
    check_float(op, "first", first, device_);
    first_ = first.data_ptr<float>(), A_ = first.size(1);
  }

  // Leaves out y.
  TimeMixing7Step time(at::TensorList p, at::TensorList state, const std::array<Scales, kScales7>& scales, double eps) {
    const Tensor& r_k = p[16];
    TORCH_CHECK(r_k.dim() == 2 && r_k.numel() == A_, op, ": r_k: expected shape (H, N) with ", A_, " numbers, got ",
                r_k.sizes());
    const int64_t H = r_k.size(0), N = r_k.size(1);
    return {
        .B = B_,
        .C = C_,
        .H = H,
        .N = N,
        .x = x_,
        .norm = norm("ln1", p[0], p[1], C_, eps),
        .mixes = floats("mixes", p[2], {kMixes7, C_}),
        .w0 = floats("w0", p[3], {A_}),
        .a0 = floats("a0", p[4], {A_}),
        .v0 = p[5].numel() ? floats("v0", p[5], {A_}) : nullptr,
        .w = low_rank("w1", p[6], "w2", p[7]),
        .a = low_rank("a1", p[8], "a2", p[9]),
        .g = low_rank("g1", p[10], "g2", p[11]),
        .v = p[5].numel() ? low_rank("v1", p[12], "v2", p[13]) : LowRank{nothing(0, C_), nothing(A_, 0)},
        .k_k = floats("k_k", p[14], {A_}),
        .k_a = floats("k_a", p[15], {A_}),
        .r_k = floats("r_k", r_k, {H, N}),
        .heads = norm("ln_x", p[17], p[18], A_, kGroupNorm7Eps),
        .receptance = tiles_argument(op.c_str(), "receptance", p[19], A_, C_, scales[0], device_),
        .key = tiles_argument(op.c_str(), "key", p[20], A_, C_, scales[1], device_),
        .value = tiles_argument(op.c_str(), "value", p[21], A_, C_, scales[2], device_),
        .output = tiles_argument(op.c_str(), "output", p[22], C_, A_, scales[3], device_),
        .first = first_,
        .shift = this->state("att_shift", state[0], C_),
        .wkv = wkv(state[1], H, N),
        .shift_stride = state[0].stride(0),
        .wkv_stride = state[1].stride(0),
        .slots = slots_,
        .before = before_,
        .y = nullptr,
    };
  }

  ChannelMixing7Step channel(at::TensorList p, at::TensorList state, const std::array<Scales, kScales7>& scales,
                             double eps) {
    const Tensor& value = p[27];
    TORCH_CHECK(value.dim() == 2, op, ": ffn value: expected shape (F, C), got ", value.sizes());
    const int64_t F = value.size(0);
    return {
        .B = B_,
        .C = C_,
        .F = F,
        .x = x_,
        .norm = norm("ln2", p[23], p[24], C_, eps),
        .mix = floats("ffn mix", p[25], {C_}),
        .key = tiles_argument(op.c_str(), "ffn key", p[26], F, C_, scales[4], device_),
        .value = rows_argument(op.c_str(), "ffn value", value, C_, F, scales[5], device_),
        .shift = this->state("ffn_shift", state[2], C_),
        .shift_stride = state[2].stride(0),
        .slots = slots_,
        .before = before_,
        .y = nullptr,
    };
  }

 private:
  LayerNorm norm(const char* name, const Tensor& weight, const Tensor& bias, int64_t width, double eps) {
    return {floats(name, weight, {width}), floats(name, bias, {width}), static_cast<float>(eps)};
  }
  // The rank is that of the tiles, which are padded with zeros.
  LowRank low_rank(const char* first_name, const Tensor& first, const char* second_name, const Tensor& second) {
    TORCH_CHECK(first.dim() == 5 && first.is_floating_point(), op, ": ", first_name, ": expected tiles of floats, got ",
                first.scalar_type(), " of shape ", first.sizes());
    const int64_t rank = first.size(0) * kTileRows;
    return {tiles_argument(op.c_str(), first_name, first, rank, C_, {}, device_),
            tiles_argument(op.c_str(), second_name, second, A_, rank, {}, device_)};
  }
  static Matrix nothing(int64_t N, int64_t K) { return {Format::fp32, nullptr, N, K, nullptr, nullptr}; }
  float* wkv(const Tensor& state, int64_t H, int64_t N) {
    const int64_t S = rows_of_state;
    TORCH_CHECK(state.sizes() == at::IntArrayRef({S, H, N, N}), op, ": wkv: expected shape (", S, ", ", H, ", ", N,
                ", ", N, "), got ", state.sizes());
    check_float(op.c_str(), "wkv", state, device_);
    TORCH_CHECK(S == 0 || state.select(0, 0).is_contiguous(), op, ": wkv: expected rows without gaps inside them, got ",
                "strides ", state.strides());
    return state.data_ptr<float>();
  }

  int64_t A_;
  float* first_;
};

template <class Device>
Tensor blocks7_step(const Tensor& x, const Tensor& first, double eps, at::TensorList parameters,
                    const ScalesList& scales, at::TensorList state, const Slots& slots, const Slots& before) {
  static constexpr char op[] = "rwkv_engine::blocks7_step";
  const int64_t L = static_cast<int64_t>(parameters.size()) / kParameters7, given = scales.size();
  TORCH_CHECK(static_cast<int64_t>(parameters.size()) == L * kParameters7 &&
                  static_cast<int64_t>(state.size()) == L * kStates7 && (given == 0 || given == L * kScales7),
              op, ": expected ", kParameters7, " parameters, ", kStates7, " states and ", kScales7,
              " scales for each layer, got ", parameters.size(), ", ", state.size(), " and ", given);
  Step7Arguments arguments(op, x, first, slots, before);
  const int64_t B = x.size(0), C = x.size(1);
  Tensor y = at::empty({B, C}, x.options()), between = at::empty({B, C}, x.options());
  if (L == 0) return y.copy_(x);
  std::vector<Block7Step> layers;
  layers.reserve(L);
  for (int64_t i = 0; i < L; ++i) {
    arguments.op = op + (": layer " + std::to_string(i));
    const auto p = parameters.slice(i * kParameters7, kParameters7);
    const auto s = state.slice(i * kStates7, kStates7);
    std::array<Scales, kScales7> own{};
    for (int64_t j = 0; given && j < kScales7; ++j) own[j] = scales.get(i * kScales7 + j);
    Block7Step& layer =
        layers.emplace_back(Block7Step{arguments.time(p, s, own, eps), arguments.channel(p, s, own, eps)});
    if (i > 0) layer.time.x = y.const_data_ptr<float>();
    layer.time.y = between.data_ptr<float>();
    layer.channel.x = between.const_data_ptr<float>();
    layer.channel.y = y.data_ptr<float>();
  }
  Device::launch(op, layers, arguments.rows_of_state, x);
  return y;
}

}  // namespace rwkv

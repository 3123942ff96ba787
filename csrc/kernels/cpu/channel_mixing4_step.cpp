#include "kernels/cpu/channel_mixing4_step.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/residual_input_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"
#include "kernels/math.h"

namespace rwkv::cpu {
namespace {

struct Pieces;
ResidualInputProduct value_product(const ChannelMixing4Step& step, const Pieces& at);

struct Pieces {
  float *now, *squared, *gate;  // (B, C), (B, F), (B, C)
  char *in_k, *in_r, *product;  // prepared, and the scratch memory of the last product
  int64_t size;

  Pieces(const ChannelMixing4Step& step, void* allocation) {
    Scratch scratch(allocation);
    now = scratch.take<float>(step.B * step.C), squared = scratch.take<float>(step.B * step.F);
    gate = scratch.take<float>(step.B * step.C);
    in_k = scratch.take<char>(step.B * prepared_size(step.key));
    in_r = scratch.take<char>(step.B * prepared_size(step.receptance));
    product = scratch.take<char>(value_product(step, *this).scratch_bytes());
    size = scratch.used();
  }
};

ResidualInputProduct value_product(const ChannelMixing4Step& step, const Pieces& at) {
  return {step.value, at.squared, step.B, at.gate, step.x, step.y};
}

}  // namespace

int64_t scratch_bytes(const ChannelMixing4Step& step) { return Pieces(step, nullptr).size; }

void channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, const Run& run) {
  const auto [B, C, F] = std::tuple{step.B, step.C, step.F};
  const Pieces at(step, scratch);
  const std::array<StepInput, 2> inputs{{{step.mix_k, step.key, at.in_k}, {step.mix_r, step.receptance, at.in_r}}};
  prepare_step(step, inputs, at.now, run);

  const int64_t key_blocks = tile_blocks(F);
  run(key_blocks + tile_blocks(C), B * C * kTileRows, [=, &step](int64_t begin, int64_t end) {
    const auto [sums] = thread_buffers<Lanes>(B);
    for (int64_t unit = begin; unit < end; ++unit) {
      const bool is_key = unit < key_blocks;
      const int64_t block = is_key ? unit : unit - key_blocks, width = is_key ? F : C, n = block * kTileRows;
      tile_product(is_key ? step.key : step.receptance, block, is_key ? at.in_k : at.in_r, B, sums);
      const int64_t rows = std::min<int64_t>(kTileRows, width - n);
      for (int64_t b = 0; b < B; ++b) {
        float out[kTileRows];  // of all lanes: the compiler vectorises a loop whose length it knows
        store_lanes(out, is_key ? squared_relu(sums[b]) : sums[b]);
        if (!is_key)
          for (float& sum : out) sum = sigmoid(sum);
        copy_lanes(out, rows, (is_key ? at.squared : at.gate) + b * width + n);
      }
    }
  });

  residual_input_product(value_product(step, at), at.product, run);
}

}  // namespace rwkv::cpu

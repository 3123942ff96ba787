#include "kernels/cpu/channel_mixing7_step.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/residual_input_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"

namespace rwkv::cpu {
namespace {

struct Pieces;
ResidualInputProduct value_product(const ChannelMixing7Step& step, const Pieces& at);

struct Pieces {
  float *now, *squared;  // (B, C), (B, F)
  char *in, *product;    // prepared, and the scratch memory of the last product
  int64_t size;

  Pieces(const ChannelMixing7Step& step, void* allocation) {
    Scratch scratch(allocation);
    now = scratch.take<float>(step.B * step.C), squared = scratch.take<float>(step.B * step.F);
    in = scratch.take<char>(step.B * prepared_size(step.key));
    product = scratch.take<char>(value_product(step, *this).scratch_bytes());
    size = scratch.used();
  }
};

ResidualInputProduct value_product(const ChannelMixing7Step& step, const Pieces& at) {
  return {step.value, at.squared, step.B, nullptr, step.x, step.y};
}

}  // namespace

int64_t scratch_bytes(const ChannelMixing7Step& step) { return Pieces(step, nullptr).size; }

void channel_mixing7_step(const ChannelMixing7Step& step, void* scratch, const Run& run) {
  const auto [B, C, F] = std::tuple{step.B, step.C, step.F};
  const Pieces at(step, scratch);
  prepare_step(step, std::array<StepInput, 1>{{{step.mix, step.key, at.in}}}, at.now, run);

  run(tile_blocks(F), B * C * kTileRows, [=, &step](int64_t begin, int64_t end) {
    const auto [sums] = thread_buffers<Lanes>(B);
    for (int64_t block = begin; block < end; ++block) {
      tile_product(step.key, block, at.in, B, sums);
      const int64_t f = block * kTileRows, lanes = std::min<int64_t>(kTileRows, F - f);
      for (int64_t b = 0; b < B; ++b) {
        float squared[kTileRows];
        store_lanes(squared, squared_relu(sums[b]));
        copy_lanes(squared, lanes, at.squared + b * F + f);
      }
    }
  });

  residual_input_product(value_product(step, at), at.product, run);
}

}  // namespace rwkv::cpu

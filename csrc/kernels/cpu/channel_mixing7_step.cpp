#include "kernels/cpu/channel_mixing7_step.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/input_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"

namespace rwkv::cpu {
namespace {

struct Pieces {
  float *now, *squared, *parts;  // (B, C), (B, F), (kInputParts, B, C)
  char* in;                      // prepared
  int64_t size;

  Pieces(const ChannelMixing7Step& step, void* allocation) {
    Scratch scratch(allocation);
    now = scratch.take<float>(step.B * step.C), squared = scratch.take<float>(step.B * step.F);
    parts = scratch.take<float>(kInputParts * step.B * step.C);
    in = scratch.take<char>(step.B * prepared_size(step.key));
    size = scratch.used();
  }
};

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
        float squared[kTileRows];  // of all lanes: the compiler vectorises a loop whose length it knows
        store_lanes(squared, sums[b]);
        for (float& key : squared) {
          const float positive = key < 0 ? 0 : key;  // keeps NaN
          key = positive * positive;
        }
        std::copy_n(squared, lanes, at.squared + b * F + f);
      }
    }
  });

  run(kInputParts, B * F * C / kInputParts, [=, &step](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      input_product(step.value, at.squared, B, part, at.parts + part * B * C);
  });
  run(B * C, kInputParts, [=, &step](int64_t begin, int64_t end) {
    float* const sums = at.parts;  // those of the first part
    for (int64_t part = 1; part < kInputParts; ++part)
      for (int64_t i = begin; i < end; ++i) sums[i] += at.parts[part * B * C + i];
    for (int64_t i = begin; i < end; ++i) step.y[i] = step.x[i] + sums[i];
  });
}

}  // namespace rwkv::cpu

#include "kernels/cpu/channel_mixing4_step.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "kernels/cpu/input_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/step_inputs.h"
#include "kernels/math.h"

namespace rwkv::cpu {
namespace {

// Threads get columns of the value matrix in multiples of this number, which is a multiple of a cache line.
constexpr int64_t kPiece = 64;

struct Pieces {
  float *now, *squared, *gate;   // (B, C), (B, F), (B, C)
  char *in_k, *in_r, *in_value;  // prepared
  int64_t size;

  Pieces(const ChannelMixing4Step& step, void* allocation) {
    Scratch scratch(allocation);
    now = scratch.take<float>(step.B * step.C), squared = scratch.take<float>(step.B * step.F);
    gate = scratch.take<float>(step.B * step.C);
    in_k = scratch.take<char>(step.B * prepared_size(step.key));
    in_r = scratch.take<char>(step.B * prepared_size(step.receptance));
    in_value = scratch.take<char>(step.B * input_prepared_size(step.value));
    size = scratch.used();
  }
};

}  // namespace

int64_t scratch_bytes(const ChannelMixing4Step& step) { return Pieces(step, nullptr).size; }

void channel_mixing4_step(const ChannelMixing4Step& step, void* scratch, const Run& run) {
  const auto [B, C, F] = std::tuple{step.B, step.C, step.F};
  const Pieces at(step, scratch);
  const std::array<StepInput, 2> inputs{{{step.mix_k, step.key, at.in_k}, {step.mix_r, step.receptance, at.in_r}}};
  prepare_step(step, inputs, at.now, run);

  const int64_t key_blocks = tile_blocks(F);
  run(key_blocks + tile_blocks(C), B * C * kTileRows, [=, &step](int64_t begin, int64_t end) {
    std::vector<Lanes> sums(B);
    for (int64_t unit = begin; unit < end; ++unit) {
      const bool is_key = unit < key_blocks;
      const int64_t block = is_key ? unit : unit - key_blocks, width = is_key ? F : C, n = block * kTileRows;
      tile_product(is_key ? step.key : step.receptance, block, is_key ? at.in_k : at.in_r, B, sums.data());
      const int64_t rows = std::min<int64_t>(kTileRows, width - n);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t i = 0; i < rows; ++i) {
          const float sum = sums[b][i], positive = sum < 0 ? 0 : sum;  // keeps NaN
          (is_key ? at.squared : at.gate)[b * width + n + i] = is_key ? positive * positive : sigmoid(sum);
        }
    }
  });

  prepare_inputs(step.value, at.squared, B, at.in_value, run);
  run((C + kPiece - 1) / kPiece, B * F * kPiece, [=, &step](int64_t begin, int64_t end) {
    const int64_t from = begin * kPiece, columns = std::min(C, end * kPiece) - from;
    const std::vector<int64_t> active = active_inputs(at.squared, B, F);
    std::vector<float> sums(B * columns);
    input_product(step.value, at.squared, at.in_value, active, B, from, columns, sums.data());
    for (int64_t b = 0; b < B; ++b)
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t i = b * C + from + c;
        step.y[i] = step.x[i] + at.gate[i] * sums[b * columns + c];
      }
  });
}

}  // namespace rwkv::cpu

// Panels whose products are computed in AMX tiles, see cpu/panel.h and cpu/amx.h. Torch-free.
//
// 16 groups of a block of weights are a tile: 64 int8 or 32 bfloat16 inputs of 16 outputs, as AMX wants its second
// factor.
#pragma once

#include "kernels/cpu/amx.h"
#include "kernels/cpu/panel.h"

#ifdef RWKV_AMX
namespace rwkv::cpu {

// Stand for weights that are multiplied in AMX tiles.
struct AmxInt8 {
  int8_t number;
};
struct AmxBfloat16 {
  uint16_t bits;
};

static_assert(kBlocks == 2 && kTileGroups == 16);

// int8 weights. Activations are the integers of cpu/quantized.h, as 256 h + l with a signed byte h and an unsigned byte
// l, in tiles of 16 rows of each; then the scales of their groups. Sums within a group are exact, so the results have
// the same bits as those of Panel<int8_t>.
template <>
struct Panel<AmxInt8> : PanelOf<16> {
  struct Tiles {
    int8_t high[kRows][amx::kTileBytes];
    uint8_t low[kRows][amx::kTileBytes];
  };
  static constexpr int64_t kTilesOfScale = kQuantized / amx::kTileBytes;

  static int64_t tiles_of(int64_t K) { return tiles_per_block<int8_t>(K); }
  static int64_t size(int64_t K) { return tiles_of(K) * sizeof(Tiles) + quantized_groups(K) * kRows * sizeof(float); }

  static void pack(const float* x, int64_t rows, const Matrix& matrix, char* panel) {
    const int64_t K = matrix.K;
    auto* const tiles = reinterpret_cast<Tiles*>(panel);
    auto* const scales = reinterpret_cast<float*>(tiles + tiles_of(K));
    for (int i = 0; i < kRows; ++i)
      for (int64_t k = 0; k < K; k += kQuantized) {
        int16_t numbers[kQuantized] = {};
        scales[k / kQuantized * kRows + i] =
            i < rows ? quantize(x + i * K + k, matrix.columns + k, std::min(kQuantized, K - k), numbers) : 0;
        const int64_t first = k / amx::kTileBytes, end = std::min(tiles_of(K), first + kTilesOfScale);
        for (int64_t tile = first; tile < end; ++tile)
          for (int j = 0; j < amx::kTileBytes; ++j) {
            const int16_t number = numbers[(tile - first) * amx::kTileBytes + j];
            tiles[tile].high[i][j] = static_cast<int8_t>(number >> 8);
            tiles[tile].low[i][j] = static_cast<uint8_t>(number);
          }
      }
  }

  static void add(const LaneBits* const* weights, const char* panel, int64_t K, int64_t g, int64_t depth,
                  Sums& __restrict sums) {
    const auto* const tiles = reinterpret_cast<const Tiles*>(panel);
    const auto* const scales = reinterpret_cast<const float*>(tiles + tiles_of(K));
    const int64_t begin = g / kTileGroups, end = begin + depth / kTileGroups;
    for (int64_t first = begin; first < end; first += kTilesOfScale) {
      amx::zero<0>(), amx::zero<1>(), amx::zero<2>(), amx::zero<3>();
      for (int64_t tile = first; tile < std::min(end, first + kTilesOfScale); ++tile) {
        const int64_t group = (tile - begin) * kTileGroups;
        amx::load<4>(tiles[tile].high, amx::kTileBytes), amx::load<5>(tiles[tile].low, amx::kTileBytes);
        amx::load<6>(weights[0] + group, amx::kTileBytes), amx::load<7>(weights[1] + group, amx::kTileBytes);
        amx::add_signed<0, 4, 6>(), amx::add_signed<1, 4, 7>();
        amx::add_unsigned<2, 5, 6>(), amx::add_unsigned<3, 5, 7>();
      }
      LaneInts high[kRows][kBlocks], low[kRows][kBlocks];
      amx::store<0>(&high[0][0], sizeof *high), amx::store<1>(&high[0][1], sizeof *high);
      amx::store<2>(&low[0][0], sizeof *low), amx::store<3>(&low[0][1], sizeof *low);
      const float* const scale = scales + first / kTilesOfScale * kRows;
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kBlocks; ++j) sums[i][j] += to_float(high[i][j] * 256 + low[i][j]) * scale[i];
    }
  }
};

// bfloat16 weights. Activations are rounded to bfloat16, in two tiles of 16 rows: four sums hide the latency of the
// products.
template <>
struct Panel<AmxBfloat16> : PanelOf<32> {
  static constexpr int kInputs = amx::kTileBytes / 2;
  struct Tiles {
    uint16_t rows[kRows][kInputs];
  };

  static int64_t size(int64_t K) { return tiles_per_block<AmxBfloat16>(K) * sizeof(Tiles); }

  static void pack(const float* x, int64_t rows, const Matrix& matrix, char* panel) {
    auto* const tiles = reinterpret_cast<Tiles*>(panel);
    for_each_group<AmxBfloat16>(x, rows, matrix, [=](int64_t g, int i, const float* inputs) {
      for (int p = 0; p < 2; ++p)
        tiles[g / kTileGroups].rows[i][g % kTileGroups * 2 + p] = static_cast<uint16_t>(rounded_to_bfloat16(inputs[p]));
    });
  }

  static void add(const LaneBits* const* weights, const char* panel, int64_t, int64_t g, int64_t depth,
                  Sums& __restrict sums) {
    const auto* x = reinterpret_cast<const Tiles*>(panel) + g / kTileGroups;
    amx::load<0>(&sums[0][0], sizeof *sums), amx::load<1>(&sums[0][1], sizeof *sums);
    amx::load<2>(&sums[16][0], sizeof *sums), amx::load<3>(&sums[16][1], sizeof *sums);
    for (int64_t d = 0; d < depth; d += kTileGroups, ++x) {
      amx::load<4>(x->rows[0], amx::kTileBytes), amx::load<5>(x->rows[16], amx::kTileBytes);
      amx::load<6>(weights[0] + d, amx::kTileBytes), amx::load<7>(weights[1] + d, amx::kTileBytes);
      amx::add_bfloat16<0, 4, 6>(), amx::add_bfloat16<1, 4, 7>();
      amx::add_bfloat16<2, 5, 6>(), amx::add_bfloat16<3, 5, 7>();
    }
    amx::store<0>(&sums[0][0], sizeof *sums), amx::store<1>(&sums[0][1], sizeof *sums);
    amx::store<2>(&sums[16][0], sizeof *sums), amx::store<3>(&sums[16][1], sizeof *sums);
  }
};

}  // namespace rwkv::cpu
#endif

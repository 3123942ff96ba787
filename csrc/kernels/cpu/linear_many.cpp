#include "kernels/cpu/linear_many.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/lanes.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace rwkv::cpu {
namespace {

// A panel of rows times some blocks of 16 outputs is summed up in registers: as many as an instruction level has.
#if defined(__AVX512F__)
constexpr int kRows = 12, kBlocks = 2;
#elif defined(__AVX2__)
constexpr int kRows = 6, kBlocks = 1;
#else
constexpr int kRows = 3, kBlocks = 1;
#endif
constexpr int kUnit = kBlocks * kTileRows;  // outputs
// Groups of 64 bytes in a row: these weights of a unit stay in the first two caches while all rows pass by.
constexpr int64_t kDepth = 256;
// Rows that pass by at a time: so many sums of a unit wait in the cache for the next depth.
constexpr int64_t kPassing = 264;
static_assert(kPassing % kRows == 0);

// What a group of inputs becomes beside a type of weights, and how a group is multiplied and added. Activations stay
// float32, but where the processor multiplies pairs of bfloat16: there they are rounded to bfloat16.
template <class Weight>
struct Group {
  struct Inputs {
    float x[kGroupInputs<Weight>];
  };
  static Inputs inputs(const float* x) {
    Inputs inputs;
    std::copy_n(x, kGroupInputs<Weight>, inputs.x);
    return inputs;
  }
  template <int blocks>
  static RWKV_INLINE void add(const LaneBits* weights, const Inputs* inputs, Lanes (*sums)[blocks]) {
#pragma GCC unroll 2
    for (int p = 0; p < kGroupInputs<Weight>; ++p) {
      Lanes w[blocks];
#pragma GCC unroll 2
      for (int j = 0; j < blocks; ++j) w[j] = widen_group<Weight>(weights[j], p);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < blocks; ++j) sums[i][j] += w[j] * inputs[i].x[p];
    }
  }
};

#ifdef __AVX512BF16__
template <>
struct Group<Bfloat16> {
  using Inputs = uint32_t;
  static uint32_t rounded(float x) {  // to nearest, ties to even; NaN stays one
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  }
  static Inputs inputs(const float* x) { return rounded(x[0]) | rounded(x[1]) << 16; }
  template <int blocks>
  static RWKV_INLINE void add(const LaneBits* weights, const Inputs* inputs, Lanes (*sums)[blocks]) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < blocks; ++j)
        sums[i][j] =
            (Lanes)_mm512_dpbf16_ps((__m512)sums[i][j], (__m512bh)_mm512_set1_epi32(inputs[i]), (__m512bh)weights[j]);
  }
};
#endif

template <class Weight>
int64_t groups_of(int64_t K) {
  return tiles_per_block<Weight>(K) * kTileGroups;
}

// Rows [m, m + kRows) of x, group after group of inputs, zeros behind M and K.
template <class Weight>
void pack_rows(const LinearMany<Weight>& linear, int64_t m, typename Group<Weight>::Inputs* to) {
  constexpr int P = kGroupInputs<Weight>;
  const int64_t K = linear.K, groups = groups_of<Weight>(K);
  for (int i = 0; i < kRows; ++i) {
    const float* row = linear.x + (m + i) * K;
    for (int64_t g = 0; g < groups; ++g) {
      float x[P] = {};
      if (m + i < linear.M)
        for (int p = 0; p < P && g * P + p < K; ++p) x[p] = row[g * P + p];
      to[g * kRows + i] = Group<Weight>::inputs(x);
    }
  }
}

// 16 neighbours of a row of W^T as the bits of their type, zeros behind the row's end.
template <class Weight>
RWKV_INLINE LaneBits load_row(const Weight* from, int64_t columns) {
  Weight whole[kTileRows] = {};
  if (columns < kTileRows) {
    std::copy_n(from, std::max<int64_t>(columns, 0), whole);
    from = whole;
  }
  if constexpr (sizeof(Weight) == 4)
    return load_bits(from);
  else
    return load_16_bits(from);
}

// Groups [g, g + depth) of the blocks of a unit of outputs from n, out of W^T row after row. A row is far from the next
// one, so the processor does not see which lines come next.
template <class Weight>
void pack_weights(const LinearMany<Weight>& linear, int64_t n, int64_t g, int64_t depth,
                  std::array<LaneBits, kDepth>* to) {
  constexpr int P = kGroupInputs<Weight>, kAhead = 16;
  for (int64_t i = 0; i < depth; ++i) {
    LaneBits group[kBlocks] = {};
    for (int p = 0; p < P; ++p) {
      const int64_t k = (g + i) * P + p;
      if (k >= linear.K) break;
      const Weight* row = linear.weight + k * linear.N + n;
      __builtin_prefetch(row + kAhead * linear.N);
      __builtin_prefetch(row + kAhead * linear.N + kUnit - 1);
      for (int j = 0; j < kBlocks; ++j)
        group[j] |= load_row(row + j * kTileRows, linear.N - n - j * kTileRows) << 16 * p;
    }
    for (int j = 0; j < kBlocks; ++j) to[j][i] = group[j];
  }
}

// sums += a panel of rows times blocks of weights, each `depth` groups.
template <class Weight>
void add_panel(const LaneBits* const* weights, const typename Group<Weight>::Inputs* inputs, int64_t depth,
               Lanes (*__restrict sums)[kBlocks]) {
  Lanes added[kRows][kBlocks] = {};
  for (int64_t g = 0; g < depth; ++g) {
    LaneBits w[kBlocks];
#pragma GCC unroll 2
    for (int j = 0; j < kBlocks; ++j) w[j] = load_bits(weights[j] + g);
    Group<Weight>::template add<kBlocks>(w, inputs + g * kRows, added);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kBlocks; ++j) sums[i][j] += added[i][j];
}

}  // namespace

template <class Weight>
int64_t LinearMany<Weight>::scratch() const {
  const int64_t panels = (M + kRows - 1) / kRows;
  return panels * kRows * groups_of<Weight>(K) * static_cast<int64_t>(sizeof(typename Group<Weight>::Inputs));
}

template <class Weight>
void linear_many(const LinearMany<Weight>& linear, void* scratch, const Run& run) {
  using Inputs = typename Group<Weight>::Inputs;
  const int64_t groups = groups_of<Weight>(linear.K), panels = (linear.M + kRows - 1) / kRows;
  Inputs* const rows = static_cast<Inputs*>(scratch);
  run(panels, [=, &linear](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_rows(linear, i * kRows, rows + i * kRows * groups);
  });

  const int64_t blocks = tile_blocks(linear.N);
  run((blocks + kBlocks - 1) / kBlocks, [=, &linear](int64_t begin, int64_t end) {
    std::vector<Lanes> all_sums(kPassing * kBlocks);
    std::vector<std::array<LaneBits, kDepth>> packed(linear.in_tiles ? 0 : kBlocks);
    const auto* tiles = reinterpret_cast<const LaneBits*>(linear.weight);
    auto* const sums = reinterpret_cast<Lanes(*)[kBlocks]>(all_sums.data());
    for (int64_t first = 0; first < linear.M; first += kPassing) {
      const int64_t passing = std::min(kPassing, linear.M - first);
      for (int64_t unit = begin; unit < end; ++unit) {
        std::fill(all_sums.begin(), all_sums.end(), Lanes{});
        for (int64_t g = 0; g < groups; g += kDepth) {
          const int64_t depth = std::min(kDepth, groups - g);
          const LaneBits* weights[kBlocks];
          if (!linear.in_tiles) pack_weights(linear, unit * kUnit, g, depth, packed.data());
          for (int j = 0; j < kBlocks; ++j) {
            const int64_t block = std::min(unit * kBlocks + j, blocks - 1);  // the last unit may repeat a block
            weights[j] = linear.in_tiles ? tiles + block * groups + g : packed[j].data();
          }
          for (int64_t m = 0; m < passing; m += kRows)
            add_panel<Weight>(weights, rows + (first + m) * groups + g * kRows, depth, sums + m);
        }
        const int64_t n = unit * kUnit, outputs = std::min<int64_t>(kUnit, linear.N - n);
        for (int64_t m = 0; m < passing; ++m)
          memcpy(linear.y + (first + m) * linear.N + n, sums[m], outputs * sizeof(float));
      }
    }
  });
}

template struct LinearMany<float>;
template struct LinearMany<Bfloat16>;
template struct LinearMany<Float16>;
template void linear_many(const LinearMany<float>&, void*, const Run&);
template void linear_many(const LinearMany<Bfloat16>&, void*, const Run&);
template void linear_many(const LinearMany<Float16>&, void*, const Run&);

}  // namespace rwkv::cpu

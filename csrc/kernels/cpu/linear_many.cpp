#include "kernels/cpu/linear_many.h"

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/cpu/input_product.h"
#include "kernels/cpu/int4_rows.h"
#include "kernels/cpu/panel_amx.h"
#include "kernels/cpu/panel_int4.h"
#include "kernels/cpu/ways.h"

namespace rwkv::cpu {
namespace {

constexpr int kUnit = kBlocks * kTileRows;  // outputs
// The number of consecutive groups of 64 bytes that are multiplied with all rows before the next ones. The weights of a
// unit for this many stay in the L1 and L2 caches. Activations share scales over fewer words (cpu/quantized.h).
template <class Weight>
constexpr int64_t kDepth = 256;
template <>
constexpr int64_t kDepth<Int4> = 252;
static_assert(kDepth<int8_t> % (kQuantized / 4) == 0 && kDepth<Int4> % (kQuantized / kInt4Inputs * kInt4Words) == 0);
// The number of rows that are processed at a time: whole panels. The sums of a unit for this many rows stay in the
// cache.
template <class Weight>
constexpr int64_t kPassing = 264 / Panel<Weight>::kRows * Panel<Weight>::kRows;

template <class Weight>
int64_t panels_of(int64_t M) {
  return (M + Panel<Weight>::kRows - 1) / Panel<Weight>::kRows;
}

// What a thread needs while it multiplies.
template <class Weight>
struct Scope {};
#ifdef RWKV_AMX
template <>
struct Scope<AmxInt8> : amx::Scope {};
template <>
struct Scope<AmxBfloat16> : amx::Scope {};
#endif

// The words of 64 bytes in a block of tiles.
template <class Weight>
int64_t words_of(int64_t K) {
  return tiles_per_block<Weight>(K) * (std::is_same_v<Weight, Int4> ? kInt4Words : kTileGroups);
}

// The bits of 16 consecutive weights of a row of W^T; zeros after the end of the row.
template <class Weight>
RWKV_INLINE LaneBits load_row(const Weight* from, int64_t columns) {
  Weight whole[kTileRows] = {};
  if (columns < kTileRows) {
    for (int64_t n = 0; n < columns; ++n) whole[n] = from[n];
    from = whole;
  }
  if constexpr (sizeof(Weight) == 4)
    return load_bits(from);
  else if constexpr (sizeof(Weight) == 2)
    return load_16_bits(from);
  else
    return (LaneBits)widen_ints(reinterpret_cast<const int8_t*>(from)) & 0xffu;
}

template <class Weight>
using Packed = std::array<LaneBits, kDepth<Weight>>;

// Puts weights of input p into a group of inputs: float32, or rounded to one of two bfloat16.
template <class Weight>
RWKV_INLINE LaneBits put_in_group(LaneBits group, Lanes weights, int p) {
  LaneBits bits;
  memcpy(&bits, &weights, sizeof bits);
  if constexpr (sizeof(Weight) == 4) return bits;
  return group | (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 << 16 * p;
}

// As `pack_weights`, for rows of int4 W^T.
template <class Weight>
void pack_int4_rows(const Matrix& matrix, int64_t n, int64_t g, int64_t depth, Packed<Weight>* to) {
  constexpr int P = kGroupInputs<Weight>;
  const int64_t stride = int4_row_bytes(matrix.N), words = int4_row_words(matrix.N), word = n / kInt4Outputs;
  for (int64_t i = 0; i < depth; ++i) {
    LaneBits group[kBlocks] = {};
    for (int p = 0; p < P && (g + i) * P + p < matrix.K; ++p) {
      const char* const row = matrix.as<char>() + ((g + i) * P + p) * stride;
      float parameters[kTileRows];
      store_lanes(parameters, widen_row(reinterpret_cast<const Float16*>(row) + 4 * word / kTileRows * kTileRows));
      const LaneBits bits = load_bits(row + stride + (word - words) * 64);
      for (int j = 0; j < kBlocks; ++j) {
        const int block = static_cast<int>(n % kInt4Outputs / kTileRows) + j;
        const float* const values = parameters + 4 * word % kTileRows + 2 * (block / (kInt4Inputs / kTileRows));
        group[j] = put_in_group<Weight>(group[j], Int4Values{values[0], values[1]}.at(bits >> 4 * block), p);
      }
    }
    for (int j = 0; j < kBlocks; ++j) to[j][i] = group[j];
  }
}

// Packs groups [g, g + depth) of a unit of outputs, which begins at n, from row-major W^T. Consecutive rows are far
// apart in memory, so they are prefetched.
template <class Weight>
void pack_weights(const Matrix& matrix, int64_t n, int64_t g, int64_t depth, Packed<Weight>* to) {
  if (matrix.format == Format::int4) return pack_int4_rows<Weight>(matrix, n, g, depth, to);
  constexpr int P = kGroupInputs<Weight>, kAhead = 16;
  const int64_t N = matrix.N;
  for (int64_t i = 0; i < depth; ++i) {
    LaneBits group[kBlocks] = {};
    for (int p = 0; p < P; ++p) {
      const int64_t k = (g + i) * P + p;
      if (k >= matrix.K) break;
      const Weight* row = matrix.as<Weight>() + k * N + n;
      __builtin_prefetch(row + kAhead * N);
      __builtin_prefetch(row + kAhead * N + kUnit - 1);
      for (int j = 0; j < kBlocks; ++j) group[j] |= load_row(row + j * kTileRows, N - n - j * kTileRows) << 32 / P * p;
    }
    for (int j = 0; j < kBlocks; ++j) to[j][i] = group[j];
  }
}

// Writes `outputs` sums of a row times the scales of the rows of weights, if there are any.
void write_row(const Lanes* sums, const float* scales, int64_t outputs, float* y) {
  memcpy(y, sums, outputs * sizeof(float));
  for (int64_t n = 0; scales && n < outputs; ++n) y[n] *= scales[n];
}

// Quantised rows of W^T are summed in the parts of cpu/input_product.h, in which a decoding step sums them, so that
// both give the same bits. Others are summed in one part.
template <class Weight>
constexpr bool kInParts = std::is_same_v<Weight, int8_t>;
#ifdef RWKV_AMX
template <>
constexpr bool kInParts<AmxInt8> = true;
#endif

// The words of a part of the inputs.
template <class Weight>
std::pair<int64_t, int64_t> words_of_part(int64_t K, int64_t part) {
  const auto [begin, end] = inputs_of_part(K, part);
  constexpr int P = kGroupInputs<Weight>;
  return {begin / P, end == K ? words_of<Weight>(K) : end / P};
}

// Adds the sums of `rows` rows times the scales to y, whose rows are `stride` apart. The products are rounded before
// they are added, as where they are sums of their own.
void add_rows(Lanes* sums, int64_t rows, const float* scales, int64_t outputs, int64_t stride, float* y) {
  float* const products = reinterpret_cast<float*>(sums);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < outputs; ++n) products[m * kUnit + n] *= scales[n];
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t n = 0; n < outputs; ++n) y[m * stride + n] += products[m * kUnit + n];
}

// Computes the outputs of units [begin, end) for all rows.
template <class Weight>
void multiply(const LinearMany& linear, const char* panels, int64_t begin, int64_t end) {
  constexpr int kRows = Panel<Weight>::kRows;
  [[maybe_unused]] const Scope<Weight> scope;
  const auto& [M, x, matrix, in_tiles, y] = linear;
  const int64_t groups = words_of<Weight>(matrix.K), size = Panel<Weight>::size(matrix.K),
                blocks = tile_blocks(matrix.N);
  std::vector<Lanes> all_sums(kPassing<Weight> * kBlocks);
  std::vector<Packed<Weight>> packed(in_tiles ? 0 : kBlocks);
  const auto* tiles = static_cast<const LaneBits*>(matrix.weights);
  auto* const sums = reinterpret_cast<typename Panel<Weight>::Sums*>(all_sums.data());
  const int64_t parts = kInParts<Weight> && !in_tiles ? kInputParts : 1;
  for (int64_t first = 0; first < M; first += kPassing<Weight>) {
    const int64_t passing = std::min(kPassing<Weight>, M - first);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit * kUnit, outputs = std::min<int64_t>(kUnit, matrix.N - n);
      const float* const scales = matrix.rows ? matrix.rows + n : nullptr;
      for (int64_t part = 0; part < parts; ++part) {
        const auto [from, to] =
            parts > 1 ? words_of_part<Weight>(matrix.K, part) : std::pair<int64_t, int64_t>(0, groups);
        if (from == to && part > 0) continue;
        std::fill_n(all_sums.begin(), (passing + kRows - 1) / kRows * kRows * kBlocks, Lanes{});
        for (int64_t g = from; g < to; g += kDepth<Weight>) {
          const int64_t depth = std::min(kDepth<Weight>, to - g);
          const LaneBits* weights[kBlocks];
          if constexpr (!std::is_same_v<Weight, Int4>)
            if (!in_tiles) pack_weights<Weight>(matrix, n, g, depth, packed.data());
          for (int j = 0; j < kBlocks; ++j) {
            const int64_t block = std::min(unit * kBlocks + j, blocks - 1);  // the last unit may repeat a block
            weights[j] = in_tiles ? tiles + block * groups + g : packed[j].data();
          }
          for (int64_t panel = 0; panel * kRows < passing; ++panel)
            Panel<Weight>::add(weights, panels + (first / kRows + panel) * size, matrix.K, g, depth, sums[panel]);
        }
        if (part == 0) {
          for (int64_t m = 0; m < passing; ++m)
            write_row(sums[m / kRows][m % kRows], scales, outputs, y + (first + m) * matrix.N + n);
        } else {
          add_rows(all_sums.data(), passing, scales, outputs, matrix.N, y + first * matrix.N + n);
        }
      }
    }
  }
}

// Calls fn(Weight{}) for the type in which weights are multiplied. int4 weights in rows become bfloat16 or float32.
template <class Function>
auto for_multiplied(const LinearMany& linear, const Function& fn) {
  return for_format(linear.matrix.format, [&]<class Weight>(Weight weight) {
    const bool widens = std::is_same_v<Weight, Int4> && !linear.in_tiles;
    [[maybe_unused]] const bool is_bfloat16 = widens || std::is_same_v<Weight, Bfloat16>;
#ifdef RWKV_AMX
    if (is_bfloat16 && bfloat16_way == Bfloat16Way::amx) return fn(AmxBfloat16{});
    if (std::is_same_v<Weight, int8_t> && int8_in_amx) return fn(AmxInt8{});
#endif
#ifdef __AVX512BF16__
    if (is_bfloat16 && bfloat16_way == Bfloat16Way::dot) return fn(Bfloat16Pairs{});
#endif
    return widens ? fn(float{}) : fn(weight);
  });
}

}  // namespace

int64_t LinearMany::scratch_bytes() const {
  return for_multiplied(*this,
                        [&]<class Weight>(Weight) { return panels_of<Weight>(M) * Panel<Weight>::size(matrix.K); });
}

void linear_many(const LinearMany& linear, void* scratch, const Run& run) {
  for_multiplied(linear, [&]<class Weight>(Weight) {
    const auto& [M, x, matrix, in_tiles, y] = linear;
    char* const panels = static_cast<char*>(scratch);
    const int64_t size = Panel<Weight>::size(matrix.K);
    constexpr int kRows = Panel<Weight>::kRows;
    run(panels_of<Weight>(M), 8 * kRows * matrix.K, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        Panel<Weight>::pack(x + i * kRows * matrix.K, M - i * kRows, matrix, panels + i * size);
    });
    run((tile_blocks(matrix.N) + kBlocks - 1) / kBlocks, M * matrix.K * kBlocks * kTileRows,
        [&](int64_t begin, int64_t end) { multiply<Weight>(linear, panels, begin, end); });
  });
}

}  // namespace rwkv::cpu

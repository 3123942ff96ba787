// The product of cpu/input_product.h with int8 weights for so many rows that it waits for arithmetic. Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/active_rows.h"
#include "kernels/cpu/scratch.h"

namespace rwkv::cpu {

// The columns of W^T are divided into strips. The weights of a strip for a group of active inputs are copied to the L1
// cache in the order of tiles (kernels/tiles.h), so that each sum stays in a register for the whole group.
struct StripProduct {
  static constexpr int64_t kBlocks = 4, kColumns = kBlocks * kTileRows;  // of a strip, which is a cache line wide
  static constexpr int64_t kWords = kQuantized / 4;                      // of four inputs, for a group
  struct Numbers {
    uint32_t pair[2];
  };

  static void multiply(const Matrix& matrix, const float* x, int64_t B, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N;
    const auto [numbers, scales, packed] = thread_buffers<Numbers, float, LaneBits>(B * kWords, B, kBlocks * kWords);
    std::fill_n(sums, B * N, 0.0f);
    for (int64_t first = begin; first < end; first += kQuantized) {
      const ActiveInputs active(x, B, matrix.K, first, std::min(end, first + kQuantized));
      if (active.size() == 0) continue;
      prepare(matrix, x, B, first, active, numbers, scales);
      const int8_t* rows[kQuantized];  // the last one is repeated
      for (int64_t i = 0; i < kQuantized; ++i)
        rows[i] = matrix.as<int8_t>() + active[std::min(i, active.size() - 1)] * N;
      const int64_t words = (active.size() + 3) / 4;
      for (int64_t n = 0; n < N; n += kColumns) {
        pack(rows, words, n, N, packed);
        for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
          LaneInts whole[kBlocks][sharing()];
          for (int64_t j = 0; j < kBlocks; ++j) {
            const int8_t* const next = matrix.as<int8_t>() + (first + kQuantized) * N;
            const Ahead ahead{rows + j * words, n + kColumns, next + (n + j * kTileRows) * kQuantized};
            add<sharing()>(packed + j, numbers + b * kWords, words, ahead, whole[j]);
          }
          for (int64_t s = 0; s < sharing; ++s) {
            LaneInts strip[kBlocks] = {whole[0][s], whole[1][s], whole[2][s], whole[3][s]};
            to_columns(strip);
            for (int64_t j = 0; j < kBlocks && n + j * kTileRows < N; ++j) {
              const int64_t c = n + j * kTileRows;
              add_scaled(strip[j], scales[b + s], N - c, sums + (b + s) * N + c);
            }
          }
        });
      }
    }
    for (int64_t b = 0; b < B; ++b)
      for (int64_t n = 0; n < N; ++n) sums[b * N + n] *= matrix.rows[n];
  }

 private:
  // What is prefetched with each word: a row from this column on, for the next strip, and a line of the next group,
  // which memory delivers fastest from beginning to end.
  struct Ahead {
    const int8_t* const* rows;
    int64_t column;
    const int8_t* group;
  };

  // Quantises the active inputs of a group, which begins at `first`: the next four of all rows of a set, then the
  // following four; zeros after the last one.
  static void prepare(const Matrix& matrix, const float* x, int64_t B, int64_t first, const ActiveInputs& active,
                      Numbers* numbers, float* scales) {
    const int64_t n = std::min(kQuantized, matrix.K - first);
    for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
      for (int64_t s = 0; s < sharing; ++s) {
        int16_t chosen[kQuantized] = {};
        scales[b + s] = quantize(x + (b + s) * matrix.K + first, matrix.columns + first, n, chosen);
        if (active.size() < n) {
          for (int64_t i = 0; i < active.size(); ++i) chosen[i] = chosen[active[i] - first];
          std::fill(chosen + active.size(), chosen + kQuantized, 0);
        }
        order_in_pairs(chosen, kQuantized);
        for (int64_t w = 0; 4 * w < active.size(); ++w)
          memcpy(numbers + b * kWords + w * sharing + s, chosen + 4 * w, sizeof *numbers);
      }
    });
  }

#ifdef __AVX512BW__
  // Copies the columns from n on: to[word][block]. Instructions interleave 16 bytes at a time, so a block has four
  // columns of each 16.
  static void pack(const int8_t* const* rows, int64_t words, int64_t n, int64_t N, LaneBits* to) {
    const __mmask64 mask = ~uint64_t{0} >> (kColumns - std::min(kColumns, N - n));
    for (int64_t w = 0; w < words; ++w, rows += 4, to += kBlocks) {
      const auto load = [&](int i) { return _mm512_maskz_loadu_epi8(mask, rows[i] + n); };
      const __m512i a = load(0), b = load(1), c = load(2), d = load(3);
      const __m512i low[] = {_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d)},
                    high[] = {_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d)};
      to[0] = (LaneBits)_mm512_unpacklo_epi16(low[0], low[1]), to[1] = (LaneBits)_mm512_unpackhi_epi16(low[0], low[1]);
      to[2] = (LaneBits)_mm512_unpacklo_epi16(high[0], high[1]);
      to[3] = (LaneBits)_mm512_unpackhi_epi16(high[0], high[1]);
    }
  }

  // Brings the sums of a strip into the order of its columns: transposes the quarters of its four vectors.
  static RWKV_INLINE void to_columns(LaneInts (&strip)[kBlocks]) {
    const auto& [a, b, c, d] = strip;
    const LaneInts low[] = {lower(a, b), lower(c, d)}, high[] = {upper(a, b), upper(c, d)};
    const LaneInts columns[] = {even(low[0], low[1]), odd(low[0], low[1]), even(high[0], high[1]),
                                odd(high[0], high[1])};
    std::copy_n(columns, kBlocks, strip);
  }
  // Of both vectors: the lower halves, the upper halves, the quarters 0 and 2, the quarters 1 and 3.
  static RWKV_INLINE LaneInts lower(LaneInts a, LaneInts b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  }
  static RWKV_INLINE LaneInts upper(LaneInts a, LaneInts b) {
    return __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
  static RWKV_INLINE LaneInts even(LaneInts a, LaneInts b) {
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  }
  static RWKV_INLINE LaneInts odd(LaneInts a, LaneInts b) {
    return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  }
#else
  static void to_columns(LaneInts (&)[kBlocks]) {}  // in which `pack` leaves them

  // Copies the columns from n on: to[word][block].
  static void pack(const int8_t* const* rows, int64_t words, int64_t n, int64_t N, LaneBits* to) {
    for (int64_t w = 0; w < words; ++w, rows += 4, to += kBlocks) {
      if (n + kColumns <= N) {
        for (int64_t j = 0; j < kBlocks; ++j) {
          const int64_t c = n + j * kTileRows;
          interleave(rows[0] + c, rows[1] + c, rows[2] + c, rows[3] + c, to + j);
        }
      } else {
        int8_t tails[4][kColumns] = {};
        for (int i = 0; i < 4; ++i) std::copy(rows[i] + n, rows[i] + N, tails[i]);
        for (int64_t j = 0; j < kBlocks; ++j) {
          const int64_t c = j * kTileRows;
          interleave(tails[0] + c, tails[1] + c, tails[2] + c, tails[3] + c, to + j);
        }
      }
    }
  }

  // 16 columns of four inputs become a word of a tile.
  static RWKV_INLINE void interleave(const int8_t* first, const int8_t* second, const int8_t* third,
                                     const int8_t* fourth, LaneBits* word) {
    const Bytes a = load(first), b = load(second), c = load(third), d = load(fourth);
    const Shorts pairs[4] = {low(a, b), high(a, b), low(c, d), high(c, d)};
    store(low(pairs[0], pairs[2]), word, 0), store(high(pairs[0], pairs[2]), word, 1);
    store(low(pairs[1], pairs[3]), word, 2), store(high(pairs[1], pairs[3]), word, 3);
  }

  using Bytes = uint8_t __attribute__((vector_size(16)));
  using Shorts = uint16_t __attribute__((vector_size(16)));

  static RWKV_INLINE Bytes load(const int8_t* from) {
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
  }
  static RWKV_INLINE void store(Shorts shorts, LaneBits* word, int quarter) {
    memcpy(reinterpret_cast<char*>(word) + quarter * sizeof shorts, &shorts, sizeof shorts);
  }
  // The lower or the upper halves of both, in turn.
  static RWKV_INLINE Shorts low(Bytes a, Bytes b) {
    return (Shorts)__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  }
  static RWKV_INLINE Shorts high(Bytes a, Bytes b) {
    return (Shorts)__builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
  static RWKV_INLINE Shorts low(Shorts a, Shorts b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
  static RWKV_INLINE Shorts high(Shorts a, Shorts b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  }
#endif

  // The sums of a block for a set of rows. Meanwhile the next strip is prefetched.
  template <int sharing>
  static RWKV_INLINE void add(const LaneBits* block, const Numbers* __restrict x, int64_t words, Ahead ahead,
                              LaneInts* __restrict whole) {
    LaneInts sums[sharing] = {};
    for (int64_t w = 0; w < words; ++w, x += sharing) {
      __builtin_prefetch(ahead.rows[w] + ahead.column);
      __builtin_prefetch(ahead.group + w * 64, 0, 2);
      const Pairs pairs = pairs_of(block[w * kBlocks]);
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b)
        sums[b] = add_pairs(add_pairs(sums[b], pairs.even, x[b].pair[0]), pairs.odd, x[b].pair[1]);
    }
    std::copy_n(sums, sharing, whole);
  }

  // Adds 16 columns, of which `columns` exist.
  static RWKV_INLINE void add_scaled(LaneInts whole, float scale, int64_t columns, float* sums) {
    if (columns >= kTileRows) {
      store_lanes(sums, load_lanes(sums) + to_float(whole) * scale);
    } else {
      for (int64_t c = 0; c < columns; ++c) sums[c] += static_cast<float>(whole[c]) * scale;
    }
  }
};

}  // namespace rwkv::cpu

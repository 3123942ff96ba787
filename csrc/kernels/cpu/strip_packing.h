// A strip of rows of W^T in the order of tiles (kernels/tiles.h). Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/quantized.h"

namespace rwkv::cpu {

// 64 columns of W^T: a cache line of int8 weights, and four blocks of outputs.
struct Strip {
  static constexpr int64_t kBlocks = 4, kColumns = kBlocks * kTileRows;

#ifdef __AVX512BW__
  // Copies the columns from n on: to[word][block]. Instructions interleave 16 bytes at a time, so a block has four
  // columns of each 16.
  static void pack(const int8_t* weights, const int32_t* rows, int64_t words, int64_t n, int64_t N, LaneBits* to) {
    const __mmask64 mask = ~uint64_t{0} >> (kColumns - std::min(kColumns, N - n));
    for (int64_t w = 0; w < words; ++w, rows += 4, to += kBlocks) {
      const auto load = [&](int i) { return _mm512_maskz_loadu_epi8(mask, weights + rows[i] * N + n); };
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

 private:
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
  static void pack(const int8_t* weights, const int32_t* inputs, int64_t words, int64_t n, int64_t N, LaneBits* to) {
    for (int64_t w = 0; w < words; ++w, inputs += 4, to += kBlocks) {
      const int8_t* rows[4];
      for (int i = 0; i < 4; ++i) rows[i] = weights + inputs[i] * N;
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

 private:
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
};

}  // namespace rwkv::cpu

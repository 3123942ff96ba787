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
          for (int64_t j = 0; j < kBlocks && n + j * kTileRows < N; ++j) {
            const int64_t c = n + j * kTileRows;
            const Ahead ahead{rows + j * words, n + kColumns};
            LaneInts whole[sharing()];
            add<sharing()>(packed + j, numbers + b * kWords, words, ahead, whole);
            for (int64_t s = 0; s < sharing; ++s) add_scaled(whole[s], scales[b + s], N - c, sums + (b + s) * N + c);
          }
        });
      }
    }
    for (int64_t b = 0; b < B; ++b)
      for (int64_t n = 0; n < N; ++n) sums[b * N + n] *= matrix.rows[n];
  }

 private:
  // The rows that are prefetched from this column on, one for each word.
  struct Ahead {
    const int8_t* const* rows;
    int64_t column;
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
        for (int64_t i = 0; i < active.size(); ++i) chosen[i] = chosen[active[i] - first];
        std::fill(chosen + active.size(), chosen + kQuantized, 0);
        order_in_pairs(chosen, kQuantized);
        for (int64_t w = 0; 4 * w < active.size(); ++w)
          memcpy(numbers + b * kWords + w * sharing + s, chosen + 4 * w, sizeof *numbers);
      }
    });
  }

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
        for (int64_t j = 0; n + j * kTileRows < N; ++j) {
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

  // The sums of a block for a set of rows. Meanwhile the next strip is prefetched.
  template <int sharing>
  static RWKV_INLINE void add(const LaneBits* block, const Numbers* __restrict x, int64_t words, Ahead ahead,
                              LaneInts* __restrict whole) {
    LaneInts sums[sharing] = {};
    for (int64_t w = 0; w < words; ++w, x += sharing) {
      __builtin_prefetch(ahead.rows[w] + ahead.column);
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

// The product of cpu/residual_input_product.h with int8 weights for so many rows that it waits for arithmetic.
// Torch-free.
#pragma once

#include <algorithm>

#include "kernels/cpu/active_rows.h"
#include "kernels/cpu/input_product.h"
#include "kernels/cpu/residual_input_product.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/strip_packing.h"

namespace rwkv::cpu {

// The columns of W^T are divided into strips. The weights of a strip for a group of active inputs are copied to the L1
// cache in the order of tiles (kernels/tiles.h), so that each sum stays in a register for the whole group. The sums are
// those of cpu/input_product.h, in the same order.
struct StripProduct {
  static constexpr int64_t kBlocks = Strip::kBlocks, kColumns = Strip::kColumns;
  static constexpr int64_t kWords = kQuantized / 4;  // of four inputs, for a group
  struct Numbers {
    uint32_t pair[2];
  };

  // A group of inputs as all threads use it.
  struct Group {
    Numbers* numbers;  // (kWords, B): of active inputs, then zeros; set by set
    float* scales;     // (B,)
    int32_t* rows;     // (kQuantized,): active inputs; the last one is repeated
    int64_t* words;    // of four active inputs
  };

  // Divides the scratch memory among the groups.
  struct Pieces {
    int64_t B, groups;
    Group all;
    int64_t size;

    Pieces(int64_t K, int64_t rows, void* allocation) : B(rows), groups(quantized_groups(K)) {
      Scratch scratch(allocation);
      all.numbers = scratch.take<Numbers>(groups * kWords * B), all.scales = scratch.take<float>(groups * B);
      all.rows = scratch.take<int32_t>(groups * kQuantized), all.words = scratch.take<int64_t>(groups);
      size = scratch.used();
    }
    Group operator[](int64_t g) const {
      return {all.numbers + g * kWords * B, all.scales + g * B, all.rows + g * kQuantized, all.words + g};
    }
  };

  static int64_t scratch_bytes(int64_t K, int64_t B) { return Pieces(K, B, nullptr).size; }

  static void compute(const ResidualInputProduct& product, void* scratch, const Run& run) {
    const Matrix& matrix = product.matrix;
    const Pieces pieces(matrix.K, product.B, scratch);
    run(pieces.groups, 16 * product.B * kQuantized, [=, &product](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) prepare(product, g, pieces[g]);
    });
    const int64_t strips = (matrix.N + kColumns - 1) / kColumns;
    run(strips, product.B * matrix.K * kColumns,
        [=, &product](int64_t begin, int64_t end) { multiply(product, pieces, begin, end); });
  }

 private:
  // The sums of the strips [begin, end), which are read together, because memory is read fastest in long pieces.
  static void multiply(const ResidualInputProduct& product, const Pieces& pieces, int64_t begin, int64_t end) {
    const auto& [matrix, a, B, gate, x, y] = product;
    const int64_t N = matrix.N, strips = end - begin, size = B * kColumns;
    const auto [sums, parts, packed] =
        thread_buffers<float, float, LaneBits>(strips * size, strips * size, kBlocks * kWords);
    std::fill_n(sums, strips * size, 0.0f);
    for (int64_t part = 0; part < kInputParts; ++part) {
      const auto [from, to] = inputs_of_part(matrix.K, part);
      if (from == to) continue;
      std::fill_n(parts, strips * size, 0.0f);
      for (int64_t first = from; first < to; first += kQuantized) {
        const int64_t g = first / kQuantized;
        const Group group = pieces[g];
        Ahead ahead(matrix, g + 1 < pieces.groups ? pieces[g + 1] : group, begin * kColumns, end * kColumns);
        for (int64_t strip = 0; strip < strips; ++strip) {
          const int64_t n = (begin + strip) * kColumns;
          Strip::pack(matrix.as<int8_t>(), group.rows, *group.words, n, N, packed);
          add_group(group, packed, B, ahead, parts + strip * size);
        }
      }
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t n = (begin + strip) * kColumns;
        float scales[kColumns] = {};
        std::copy_n(matrix.rows + n, std::min(kColumns, N - n), scales);
        float* const own = parts + strip * size;
        // The products are rounded before they are added, as where the parts are sums of their own.
        for (int64_t b = 0; b < B; ++b)
          for (int64_t c = 0; c < kColumns; ++c) own[b * kColumns + c] *= scales[c];
        for (int64_t i = 0; i < size; ++i) sums[strip * size + i] += own[i];
      }
    }
    for (int64_t b = 0; b < B; ++b)
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t n = (begin + strip) * kColumns, at = b * N + n, columns = std::min(kColumns, N - n);
        const float* const sum = sums + strip * size + b * kColumns;
        if (gate) {
          for (int64_t c = 0; c < columns; ++c) y[at + c] = x[at + c] + gate[at + c] * sum[c];
        } else {
          for (int64_t c = 0; c < columns; ++c) y[at + c] = x[at + c] + sum[c];
        }
      }
  }

  // What is prefetched with each word: the active rows of the next group, of each the columns of all strips.
  class Ahead {
   public:
    Ahead(const Matrix& matrix, const Group& group, int64_t from, int64_t to)
        : weights_(matrix.as<int8_t>() + from),
          N_(matrix.N),
          width_(std::min(to, matrix.N) - from),
          row_(weights_),
          rows_(group.rows),
          left_(4 * *group.words) {
      next_row();
    }
    RWKV_INLINE void prefetch() {
      __builtin_prefetch(row_ + column_, 0, 2);
      column_ += 64;
      if (column_ >= width_) next_row();
    }

   private:
    void next_row() {
      column_ = 0;
      if (left_ > 0) row_ = weights_ + *rows_++ * N_, --left_;
    }

    const int8_t* weights_;
    int64_t N_, width_, column_ = 0;
    const int8_t* row_;
    const int32_t* rows_;
    int64_t left_;
  };

  // Adds the sums of a strip for a group: (B, kColumns).
  static void add_group(const Group& group, const LaneBits* packed, int64_t B, Ahead& ahead, float* sums) {
    for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
      LaneInts whole[kBlocks][sharing()];
      for (int64_t j = 0; j < kBlocks; ++j)
        multiply_block<sharing()>(packed + j, group.numbers + b * kWords, *group.words, ahead, whole[j]);
      for (int64_t s = 0; s < sharing; ++s) {
        LaneInts strip[kBlocks] = {whole[0][s], whole[1][s], whole[2][s], whole[3][s]};
        Strip::to_columns(strip);
        const float scale = group.scales[b + s];
        float* const to = sums + (b + s) * kColumns;
        for (int64_t j = 0; j < kBlocks; ++j) {
          store_lanes(to + j * kTileRows, load_lanes(to + j * kTileRows) + to_float(strip[j]) * scale);
        }
      }
    });
  }

  // Finds the active inputs of a group, and quantises them: the next four of all rows of a set, then the following
  // four.
  static void prepare(const ResidualInputProduct& product, int64_t g, const Group& group) {
    const Matrix& matrix = product.matrix;
    const int64_t first = g * kQuantized, n = std::min(kQuantized, matrix.K - first);
    const ActiveInputs active(product.a, product.B, matrix.K, first, first + n);
    *group.words = (active.size() + 3) / 4;
    for (int64_t i = 0; i < kQuantized && active.size(); ++i)
      group.rows[i] = static_cast<int32_t>(active[std::min(i, active.size() - 1)]);
    for_each_set<kSharing>(product.B, [&](auto sharing, int64_t b) {
      for (int64_t s = 0; s < sharing; ++s) {
        int16_t chosen[kQuantized] = {};
        group.scales[b + s] = quantize(product.a + (b + s) * matrix.K + first, matrix.columns + first, n, chosen);
        if (active.size() < n) {
          for (int64_t i = 0; i < active.size(); ++i) chosen[i] = chosen[active[i] - first];
          std::fill(chosen + active.size(), chosen + kQuantized, 0);
        }
        order_in_pairs(chosen);
        for (int64_t w = 0; w < *group.words; ++w)
          memcpy(group.numbers + b * kWords + w * sharing + s, chosen + 4 * w, sizeof(Numbers));
      }
    });
  }

  // The sums of a block for a set of rows.
  template <int sharing>
  static RWKV_INLINE void multiply_block(const LaneBits* block, const Numbers* __restrict x, int64_t words,
                                         Ahead& ahead, LaneInts* __restrict whole) {
    LaneInts sums[sharing] = {};
    for (int64_t w = 0; w < words; ++w, x += sharing) {
      ahead.prefetch();
      const Pairs pairs = pairs_of(block[w * kBlocks]);
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b)
        sums[b] = add_pairs(add_pairs(sums[b], pairs.even, x[b].pair[0]), pairs.odd, x[b].pair[1]);
    }
    std::copy_n(sums, sharing, whole);
  }
};

}  // namespace rwkv::cpu

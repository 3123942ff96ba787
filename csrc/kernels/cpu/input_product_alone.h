// The product of cpu/input_product.h of int8 weights with one row of activations, where there are dot products of bytes
// (AVX-512 VNNI). Torch-free.
#pragma once

#ifdef __AVX512VNNI__

#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/active_rows.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/strip_packing.h"

namespace rwkv::cpu {

// Four inputs at a time are brought into the lanes of their columns. An activation x is 256 h + l with bytes h, which
// is signed, and l, which is not, so W x is 256 ((W + 128) h - 128 h) + W l: two dot products of four signed with four
// unsigned bytes. That takes half as many instructions as widening weights to 16 bits, which memory would wait for. The
// sums are the same integers; parts of them may overflow, which wraps.
struct AloneProduct {
  static constexpr int64_t kTogether = 8;                                 // rows of W^T
  static constexpr int kBlocks = Strip::kBlocks, kQuads = kTogether / 4;  // vectors of sums, and of inputs
  static constexpr int64_t kColumns = Strip::kColumns;                    // a cache line of a row
  using Rows = ActiveRows<kTogether>;
  struct Bytes {
    __m512i high[kQuads], low[kQuads];  // of four activations, in all lanes
  };

  static void multiply(const Matrix& matrix, const float* x, int64_t begin, int64_t end, float* sums) {
    const int64_t N = matrix.N, blocks = (N + kColumns - 1) / kColumns * kBlocks;
    const auto [floats, ints] = thread_buffers<Lanes, LaneInts>(blocks, blocks);
    std::fill_n(floats, blocks, Lanes{});
    for (int64_t first = begin; first < end; first += kQuantized) {
      const int64_t n = std::min(kQuantized, end - first);
      int16_t numbers[kQuantized];
      const float scale = quantize(x + first, matrix.columns + first, n, numbers);
      const ActiveInputs active(x, 1, matrix.K, first, first + n);
      int32_t highs = 0;
      for (int64_t i = 0; i < n; ++i) highs += numbers[i] >> 8;  // zero where the input is not active
      std::fill_n(ints, blocks, LaneInts{} - highs * (128 << 8));
      for (int64_t i = 0; i < active.size(); i += kTogether) {
        const Rows rows(matrix.weights, N, active, i);
        int16_t chosen[kTogether] = {};  // missing inputs are zero
        for (int64_t j = 0; j < rows.n; ++j) chosen[j] = numbers[active[i + j] - first];
        add(rows, bytes_of(chosen), N, ints);
      }
      for (int64_t i = 0; i < blocks; ++i) floats[i] += to_float(ints[i]) * scale;
    }
    for (int64_t c = 0; c < N; c += kColumns) store(floats + c / kTileRows, matrix.rows + c, N - c, sums + c);
  }

 private:
  // Stores the sums of up to 64 columns times their scales.
  static void store(const Lanes* sums, const float* scales, int64_t columns, float* to) {
    LaneInts bits[kBlocks];
    for (int i = 0; i < kBlocks; ++i) bits[i] = (LaneInts)sums[i];
    Strip::to_columns(bits);
    for (int i = 0; i < kBlocks && i * kTileRows < columns; ++i, scales += kTileRows, to += kTileRows) {
      const Lanes ordered = (Lanes)bits[i];
      if (columns - i * kTileRows >= kTileRows) {
        store_lanes(to, ordered * load_lanes(scales));
      } else {
        for (int64_t c = 0; c < columns - i * kTileRows; ++c) to[c] = ordered[c] * scales[c];
      }
    }
  }

  static RWKV_INLINE Bytes bytes_of(const int16_t* numbers) {
    Bytes bytes;
    for (int q = 0; q < kQuads; ++q) {
      uint32_t high = 0, low = 0;
      for (int i = 0; i < 4; ++i) {
        const auto bits = static_cast<uint16_t>(numbers[4 * q + i]);
        high |= static_cast<uint32_t>(bits >> 8) << 8 * i, low |= static_cast<uint32_t>(bits & 0xff) << 8 * i;
      }
      bytes.high[q] = _mm512_set1_epi32(static_cast<int>(high)),
      bytes.low[q] = _mm512_set1_epi32(static_cast<int>(low));
    }
    return bytes;
  }

  // Adds rows of weights to the sums of all columns.
  static void add(const Rows& rows, const Bytes& x, int64_t N, LaneInts* __restrict sums) {
    for (int64_t c = 0; c < N; c += kColumns, sums += kBlocks) {
      const int64_t there = std::min(kColumns, N - c);
      const __mmask64 mask = ~uint64_t{0} >> (kColumns - there);
      __m512i low[kBlocks], high[kBlocks] = {};
      memcpy(low, sums, sizeof low);
#pragma GCC unroll 8
      for (int q = 0; q < kQuads; ++q) {
        rows.template prefetch<4>(c, 4 * q);
        const auto load = [&](int i) { return _mm512_maskz_loadu_epi8(mask, rows.rows[4 * q + i] + c); };
        const __m512i a = load(0), b = load(1), d = load(2), e = load(3);
        const __m512i pairs[4] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b), _mm512_unpacklo_epi8(d, e),
                                  _mm512_unpackhi_epi8(d, e)};
        const __m512i quads[kBlocks] = {
            _mm512_unpacklo_epi16(pairs[0], pairs[2]), _mm512_unpackhi_epi16(pairs[0], pairs[2]),
            _mm512_unpacklo_epi16(pairs[1], pairs[3]), _mm512_unpackhi_epi16(pairs[1], pairs[3])};
#pragma GCC unroll 4
        for (int j = 0; j < kBlocks; ++j) {
          low[j] = _mm512_dpbusd_epi32(low[j], x.low[q], quads[j]);
          high[j] = _mm512_dpbusd_epi32(high[j], quads[j] ^ _mm512_set1_epi8(-128), x.high[q]);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kBlocks; ++j) sums[j] = (LaneInts)((LaneBits)low[j] + ((LaneBits)high[j] << 8));
    }
  }
};

}  // namespace rwkv::cpu

#endif

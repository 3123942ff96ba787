#include "kernels/cpu/input_product.h"

#include <algorithm>

#include "kernels/cpu/quantized.h"
#include "kernels/cpu/row_sets.h"

namespace rwkv::cpu {
namespace {

// Float weights. Activations are used unchanged, and each column is summed input by input.
template <class Weight>
struct InputProduct {
  // Inputs that are added per load of the sums.
  static constexpr int kInputs = 4;

  static int64_t prepared_size(int64_t) { return 0; }
  static void prepare(const Matrix&, const float*, char*) {}

  static void multiply(const Matrix& matrix, const float* x, const char*, const std::vector<int64_t>& active, int64_t B,
                       int64_t from, int64_t columns, float* sums) {
    const Weight* const weights = matrix.as<Weight>() + from;
    std::fill_n(sums, B * columns, 0.0f);
    size_t i = 0;
    for (; i + kInputs <= active.size(); i += kInputs)
      for (int64_t b = 0; b < B; ++b)
        add<kInputs>(weights, matrix.N, &active[i], x + b * matrix.K, columns, sums + b * columns);
    for (; i < active.size(); ++i)
      for (int64_t b = 0; b < B; ++b)
        add<1>(weights, matrix.N, &active[i], x + b * matrix.K, columns, sums + b * columns);
  }

  template <int inputs>
  static RWKV_INLINE void add(const Weight* __restrict weights, int64_t N, const int64_t* k, const float* x,
                              int64_t columns, float* __restrict sums) {
    int64_t c = 0;
    for (; c + kTileRows <= columns; c += kTileRows) {
      Lanes sum = load_lanes(sums + c);
#pragma GCC unroll 4
      for (int i = 0; i < inputs; ++i) sum += widen_row(weights + k[i] * N + c) * x[k[i]];
      store_lanes(sums + c, sum);
    }
    if (c == columns) return;
    for (int i = 0; i < inputs; ++i) {
      Weight tail[kTileRows] = {};
      std::copy_n(weights + k[i] * N + c, columns - c, tail);
      const Lanes term = widen_row(tail) * x[k[i]];
      for (int64_t j = c; j < columns; ++j) sums[j] += term[j - c];
    }
  }
};

// int8 weights. Activations are quantised to integers (cpu/quantized.h), and added two inputs at a time. A prepared row
// has the integers, then the scales of their groups.
template <>
struct InputProduct<int8_t> {
  static constexpr int64_t kPairs = 32;      // pairs of inputs that are added per load of the sums
  static constexpr int64_t kPrefetch = 128;  // bytes; the hardware prefetcher cannot follow so many rows

  static int64_t prepared_size(int64_t K) {
    return (K * sizeof(int16_t) + 63) / 64 * 64 + (quantized_groups(K) * sizeof(float) + 63) / 64 * 64;
  }
  static const float* scales_in(const char* prepared, int64_t K) {
    return reinterpret_cast<const float*>(prepared + (K * sizeof(int16_t) + 63) / 64 * 64);
  }

  static void prepare(const Matrix& matrix, const float* x, char* prepared) {
    auto* const numbers = reinterpret_cast<int16_t*>(prepared);
    auto* const scales = const_cast<float*>(scales_in(prepared, matrix.K));
    for (int64_t k = 0; k < matrix.K; k += kQuantized)
      scales[k / kQuantized] = quantize(x + k, matrix.columns + k, std::min(kQuantized, matrix.K - k), numbers + k);
  }

  static void multiply(const Matrix& matrix, const float*, const char* prepared, const std::vector<int64_t>& active,
                       int64_t B, int64_t from, int64_t columns, float* sums) {
    const int64_t K = matrix.K, size = prepared_size(K), whole = (columns + kTileRows - 1) / kTileRows;
    std::vector<Lanes> floats(B * whole);  // [set][column][row of the set]
    std::vector<LaneInts> ints(B * whole);
    for (auto next = active.begin(); next != active.end();) {
      const int64_t group = *next / kQuantized;
      const auto end = std::lower_bound(next, active.end(), (group + 1) * kQuantized);
      std::fill(ints.begin(), ints.end(), LaneInts{});
      while (next != end) {
        const int64_t n = std::min<int64_t>(end - next, 2 * kPairs);
        const int8_t* rows[2 * kPairs];
        for (int64_t i = 0; i < n + n % 2; ++i)
          rows[i] = matrix.as<int8_t>() + next[std::min(i, n - 1)] * matrix.N + from;
        for_each_set<kSharing>(B, [&](auto sharing, int64_t b) {
          add<sharing()>(rows, &*next, n, prepared + b * size, size, columns, &ints[b * whole]);
        });
        next += n;
      }
      for_each_set<kSharing>(B, [&](auto sharing, int64_t first) {
        for (int64_t b = 0; b < sharing; ++b) {
          const float scale = scales_in(prepared + (first + b) * size, K)[group];
          for (int64_t i = first * whole + b; i < (first + sharing) * whole; i += sharing)
            floats[i] += to_float(ints[i]) * scale;
        }
      });
    }
    for_each_set<kSharing>(B, [&](auto sharing, int64_t first) {
      for (int64_t b = 0; b < sharing; ++b)
        for (int64_t c = 0; c < columns; ++c) {
          const float sum = floats[first * whole + c / kTileRows * sharing + b][c % kTileRows];
          sums[(first + b) * columns + c] = sum * matrix.rows[from + c];
        }
    });
  }

  // Adds n <= 2 kPairs inputs k of rows b to sums[column][b], 16 columns at a time in registers.
  template <int sharing>
  static void add(const int8_t* const* rows, const int64_t* k, int64_t n, const char* prepared, int64_t size,
                  int64_t columns, LaneInts* __restrict sums) {
    uint32_t x[kPairs][sharing] = {};  // missing inputs are zero
    for (int b = 0; b < sharing; ++b)
      for (int64_t i = 0; i < n; ++i) {
        const auto number = reinterpret_cast<const uint16_t*>(prepared + b * size)[k[i]];
        x[i / 2][b] |= static_cast<uint32_t>(number) << 16 * (i % 2);
      }
    const int64_t pairs = (n + 1) / 2, whole = (columns + kTileRows - 1) / kTileRows;
    for (int64_t i = 0; i < whole; ++i) {
      const int64_t c = i * kTileRows, there = std::min<int64_t>(kTileRows, columns - c);
      LaneInts sum[sharing];
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) sum[b] = sums[i * sharing + b];
      for (int64_t p = 0; p < pairs; ++p) {
        if (i % 4 == 0) {  // a cache line
          __builtin_prefetch(rows[2 * p] + c + kPrefetch);
          __builtin_prefetch(rows[2 * p + 1] + c + kPrefetch);
        }
        const LaneShorts w = interleaved(rows[2 * p] + c, rows[2 * p + 1] + c, there);
#pragma GCC unroll 16
        for (int b = 0; b < sharing; ++b) sum[b] = add_pairs(sum[b], w, x[p][b]);
      }
#pragma GCC unroll 16
      for (int b = 0; b < sharing; ++b) sums[i * sharing + b] = sum[b];
    }
  }

  // 16 columns of two inputs, of which `there` exist.
  static RWKV_INLINE LaneShorts interleaved(const int8_t* first, const int8_t* second, int64_t there) {
    int8_t tails[2][kTileRows] = {};
    if (there < kTileRows) {
      std::copy_n(first, there, tails[0]), std::copy_n(second, there, tails[1]);
      first = tails[0], second = tails[1];
    }
    return (LaneShorts)((widen_ints(first) & 0xffff) | widen_ints(second) << 16);
  }
};

}  // namespace

int64_t input_prepared_size(const Matrix& matrix) {
  return for_format(matrix.format, [&]<class Weight>(Weight) { return InputProduct<Weight>::prepared_size(matrix.K); });
}

void prepare_inputs(const Matrix& matrix, const float* x, int64_t B, void* prepared, const Run& run) {
  const int64_t size = input_prepared_size(matrix);
  if (!size) return;
  run(B, 8 * matrix.K, [=, &matrix](int64_t begin, int64_t end) {
    for_format(matrix.format, [&]<class Weight>(Weight) {
      for (int64_t b = begin; b < end; ++b)
        InputProduct<Weight>::prepare(matrix, x + b * matrix.K, static_cast<char*>(prepared) + b * size);
    });
  });
}

std::vector<int64_t> active_inputs(const float* x, int64_t B, int64_t K) {
  constexpr int64_t kTogether = 64;
  std::vector<int64_t> active;
  active.reserve(K);
  for (int64_t first = 0; first < K; first += kTogether) {
    const int64_t n = std::min(kTogether, K - first);
    bool any[kTogether] = {};
    for (int64_t b = 0; b < B; ++b)
      for (int64_t i = 0; i < n; ++i) any[i] |= x[b * K + first + i] != 0;
    for (int64_t i = 0; i < n; ++i)
      if (any[i]) active.push_back(first + i);
  }
  return active;
}

void input_product(const Matrix& matrix, const float* x, const void* prepared, const std::vector<int64_t>& active,
                   int64_t B, int64_t from, int64_t columns, float* sums) {
  for_format(matrix.format, [&]<class Weight>(Weight) {
    InputProduct<Weight>::multiply(matrix, x, static_cast<const char*>(prepared), active, B, from, columns, sums);
  });
}

}  // namespace rwkv::cpu

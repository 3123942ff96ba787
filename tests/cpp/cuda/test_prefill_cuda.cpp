// LayerNorm with token shift, and the gates, on emulated devices, against their definitions in double precision.
#include "kernels/cuda/gates.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ln_shift.h"
#include "kernels/cuda/narrow.cuh"
#include "mixing_reference.h"

using namespace reference;

namespace {

constexpr float kEps = 1e-5f;

struct Prefill {
  int64_t B, T, C, M;
  Floats x = normal(B * T * C, 3), weight = normal(C), bias = normal(C), mixes = normal(M * C), shift = normal(B * C);
  Floats mixed = Floats(M * B * T * C, NAN), last = Floats(B * C, NAN);

  void run() {
    const LnShift all{
        B,          T, C, M, x.data(), {weight.data(), bias.data(), kEps}, mixes.data(), shift.data(), mixed.data(),
        last.data()};
    CHECK(cuda::ln_shift(all, mixed.data(), nullptr) == cudaSuccess);
    check_rounded<Bfloat16>(all), check_rounded<Float16>(all);
  }
  // The same numbers, rounded.
  template <class Number>
  void check_rounded(const LnShift& all) {
    std::vector<Number> rounded(mixed.size());
    const Floats before = last;
    CHECK(cuda::ln_shift(all, rounded.data(), nullptr) == cudaSuccess);
    CHECK(last == before);
    for (int64_t i = 0; i < M * B * T * C; ++i)
      CHECK(rounded[i].bits == cuda::narrow<Number>(mixed[i]).bits, i, mixed[i], rounded[i].bits);
  }
  Doubles normalised_row(int64_t b, int64_t t) const { return normalised(row(x, b * T + t, C), weight, bias, kEps); }
};

void test_ln_shift(int64_t B, int64_t T, int64_t C, int64_t M, const char* order) {
  Prefill p{B, T, C, M};
  p.run();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t) {
      const Doubles now = p.normalised_row(b, t), last = t ? p.normalised_row(b, t - 1) : row(p.shift, b, C);
      for (int64_t m = 0; m < M; ++m) {
        const Doubles expected = mixed(now, last, Floats(p.mixes.begin() + m * C, p.mixes.begin() + (m + 1) * C));
        for (int64_t c = 0; c < C; ++c)
          CHECK(close(p.mixed[((m * B + b) * T + t) * C + c], expected[c]), B, T, C, m, b, t, c, order);
      }
      for (int64_t c = 0; t == T - 1 && c < C; ++c) CHECK(close(p.last[b * C + c], now[c]), B, T, C, b, c, order);
    }
}

// Far from zero the mean of the squares less the square of the mean would be noise. What is left is the rounding of the
// mean to float32, 1 in 10^7 of 1000 or 1 in 10^3 of the deviations.
void test_an_offset(const char* order) {
  Prefill p{1, 2, 300, 1};
  for (float& x : p.x) x = 1000 + std::abs(x) / 16;
  p.run();
  const Doubles now = p.normalised_row(0, 1);
  for (int64_t c = 0; c < p.C; ++c) CHECK(std::abs(p.last[c] - now[c]) < 1e-2, c, p.last[c], now[c], order);
}

// A text read in two parts, and beside others, is the text read at once, bit for bit.
void test_parts(const char* order) {
  const int64_t T = 5, cut = 2;
  Prefill whole{2, T, 70, 2};
  whole.run();
  Prefill head = whole, tail = whole;
  head.B = tail.B = 1, head.T = cut, tail.T = T - cut;
  head.x.resize(cut * whole.C);
  head.run();
  tail.x.erase(tail.x.begin(), tail.x.begin() + cut * whole.C);
  tail.shift = head.last;
  tail.run();
  for (int64_t m = 0; m < whole.M; ++m)
    for (int64_t t = 0; t < T; ++t) {
      const Prefill& part = t < cut ? head : tail;
      const int64_t at = t < cut ? t : t - cut;
      CHECK(memcmp(&part.mixed[(m * part.T + at) * whole.C], &whole.mixed[(m * 2 * T + t) * whole.C], whole.C * 4) == 0,
            m, t, order);
    }
  CHECK(memcmp(tail.last.data(), whole.last.data(), whole.C * 4) == 0, order);
}

void test_gates(int64_t n, const char* order) {
  Floats k = normal(n, 300), x = normal(n), r = normal(n, 10), squared(n + 1, -1), with(n + 1, -1), without(n + 1, -1);
  k[n / 2] = NAN;
  std::copy_n(k.begin(), n, squared.begin());
  CHECK(cuda::squared_relu(squared.data(), n, nullptr) == cudaSuccess);
  CHECK(cuda::gate_residual(x.data(), r.data(), k.data(), n, with.data(), nullptr) == cudaSuccess);
  CHECK(cuda::gate_residual(nullptr, r.data(), k.data(), n, without.data(), nullptr) == cudaSuccess);
  for (int64_t i = 0; i < n; ++i) {
    const double gated = k[i] / (1 + std::exp(-static_cast<double>(r[i])));
    CHECK(std::isnan(k[i]) ? std::isnan(squared[i]) : squared[i] == (k[i] > 0 ? k[i] * k[i] : 0), n, i, order);
    CHECK(std::isnan(k[i]) ? std::isnan(with[i]) : close(with[i], x[i] + gated), n, i, with[i], order);
    CHECK(std::isnan(k[i]) ? std::isnan(without[i]) : close(without[i], gated), n, i, without[i], order);
  }
  CHECK(squared[n] == -1 && with[n] == -1 && without[n] == -1, n, order);
}

}  // namespace

int main() {
  CHECK(cuda::squared_relu(nullptr, 0, nullptr) == cudaSuccess);
  emulation::in_every_order([](const char* order) {
    for (const int64_t C : {1, 8, 33, 2056})
      for (const auto& [B, T] : {std::pair<int64_t, int64_t>{1, 1}, {3, 1}, {2, 4}}) test_ln_shift(B, T, C, 3, order);
    test_an_offset(order);
    test_parts(order);
    for (const int64_t n : {1, 255, 256, 700}) test_gates(n, order);
  });
  return failures();
}

// The scan against the serial recurrence in double precision, forward and backward, in every order of threads.
#include "kernels/cuda/wkv4.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "emulation.h"
#include "kernels/cpu/wkv4.h"

using namespace rwkv;

namespace {

constexpr double kPoison = NAN;
constexpr int kChunk = cuda::kWkv4Chunk;

void one_by_one(int64_t n, int64_t, const cpu::Range& fn) { fn(0, n); }

// decay, first, k, v, num, den, max and the gradients of y, num, den, max.
template <class Real>
struct Problem {
  Wkv4Size size;
  std::array<std::vector<Real>, 7> in;
  std::array<std::vector<Real>, 4> grad;

  Wkv4Inputs<Real> inputs() const {
    return {in[0].data(), in[1].data(), in[2].data(), in[3].data(), in[4].data(), in[5].data(), in[6].data()};
  }
  Wkv4OutputGrads<Real> grads() const { return {grad[0].data(), grad[1].data(), grad[2].data(), grad[3].data()}; }
  std::array<int64_t, 7> sizes() const {
    const int64_t C = size.C, all = size.B * size.T * C, state = size.B * C;
    return {C, C, all, all, state, state, state};
  }
  template <class To>
  Problem<To> as() const {
    Problem<To> to{size, {}, {}};
    for (size_t i = 0; i < in.size(); ++i) to.in[i].assign(in[i].begin(), in[i].end());
    for (size_t i = 0; i < grad.size(); ++i) to.grad[i].assign(grad[i].begin(), grad[i].end());
    return to;
  }
};

Problem<float> make_problem(Wkv4Size size, unsigned seed) {
  Problem<float> p{size, {}, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto sizes = p.sizes();
  for (int i = 0; i < 7; ++i)
    for (int64_t n = 0; n < sizes[i]; ++n) p.in[i].push_back(normal(random));
  for (float& w : p.in[0]) w = -std::exp(w);
  for (float& k : p.in[2]) k *= 2;
  for (float& den : p.in[5]) den = std::abs(den) + 0.1f;
  for (int i = 0; i < 4; ++i)
    for (int64_t n = 0; n < sizes[3 + i]; ++n) p.grad[i].push_back(normal(random));
  return p;
}

// y, num, den, max
template <class Real>
using Result = std::array<std::vector<Real>, 4>;
// of decay, first, k, v, num, den, max
template <class Real>
using Gradients = std::array<std::vector<Real>, 7>;

template <class Real>
Result<Real> forward(const Problem<Real>& p, bool on_cuda = true) {
  Result<Real> r;
  for (int i = 0; i < 4; ++i) r[i].assign(p.sizes()[3 + i], Real(kPoison));
  const Wkv4Outputs<Real> out{r[0].data(), r[1].data(), r[2].data(), r[3].data()};
  std::vector<Real> scratch(cuda::wkv4_scratch_numbers(p.size), Real(kPoison));
  if (on_cuda) {
    CHECK(cuda::wkv4(p.size, p.inputs(), out, scratch.data(), nullptr) == cudaSuccess);
  } else {
    cpu::wkv4(p.size, p.inputs(), out, one_by_one);
  }
  return r;
}

template <class Real>
Gradients<Real> backward(const Problem<Real>& p, bool on_cuda = true) {
  Gradients<Real> r;
  for (int i = 0; i < 7; ++i) r[i].assign(p.sizes()[i], Real(kPoison));
  const Wkv4InputGrads<Real> out{r[0].data(), r[1].data(), r[2].data(), r[3].data(),
                                 r[4].data(), r[5].data(), r[6].data()};
  std::vector<Real> scratch(cuda::wkv4_backward_scratch_numbers(p.size), Real(kPoison));
  if (on_cuda) {
    CHECK(cuda::wkv4_backward(p.size, p.inputs(), p.grads(), out, scratch.data(), nullptr) == cudaSuccess);
  } else {
    cpu::wkv4_backward(p.size, p.inputs(), p.grads(), out, one_by_one);
  }
  return r;
}

// The largest difference, as a part of the largest number; NaN if there is one.
template <class Real>
double error(const std::vector<Real>& got, const std::vector<double>& exact) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::abs(got[i] - exact[i]);
    if (!(difference <= worst)) worst = difference;
    largest = std::max(largest, std::abs(exact[i]));
  }
  return worst / largest;
}

// y, then the state as the average and the logarithm of the weight: max alone drifts.
template <class Real>
std::array<std::vector<double>, 3> comparable(const Result<Real>& r) {
  std::array<std::vector<double>, 3> c{std::vector<double>(r[0].begin(), r[0].end()), {}, {}};
  for (size_t i = 0; i < r[1].size(); ++i) {
    c[1].push_back(double(r[1][i]) / r[2][i]);
    c[2].push_back(std::log(double(r[2][i])) + r[3][i]);
  }
  return c;
}

std::string words(Wkv4Size s) {
  return std::to_string(s.B) + " x " + std::to_string(s.T) + " x " + std::to_string(s.C);
}

// Float at most twice as far from double as the serial recurrence in float is; double at rounding.
void is_the_recurrence(const Problem<float>& p, const std::string& what) {
  const auto exact_problem = p.as<double>();
  const auto exact = comparable(forward(exact_problem, false)), serial = comparable(forward(p, false));
  const auto exact_grads = backward(exact_problem, false);
  const auto serial_grads = backward(p, false);
  emulation::in_every_order([&](const char* order) {
    const auto got = comparable(forward(p)), got_double = comparable(forward(exact_problem));
    for (int i = 0; i < 3; ++i) {
      CHECK(error(got[i], exact[i]) <= 2 * error(serial[i], exact[i]) + 1e-6, what, order, i, error(got[i], exact[i]));
      CHECK(error(got_double[i], exact[i]) <= 1e-12, what, order, i, error(got_double[i], exact[i]));
    }
    const auto grads = backward(p);
    const auto double_grads = backward(exact_problem);
    for (int i = 0; i < 7; ++i) {
      CHECK(error(grads[i], exact_grads[i]) <= 2 * error(serial_grads[i], exact_grads[i]) + 1e-5, what, order, i,
            error(grads[i], exact_grads[i]), "serial:", error(serial_grads[i], exact_grads[i]));
      CHECK(error(double_grads[i], exact_grads[i]) <= 1e-11, what, order, i, error(double_grads[i], exact_grads[i]));
    }
  });
}

void at_odd_sizes() {
  for (const int64_t T : {1, 2, kChunk - 1, kChunk, kChunk + 1, 2 * kChunk - 1, 2 * kChunk, 2 * kChunk + 1, 129})
    for (const Wkv4Size size : {Wkv4Size{1, T, 8}, {3, T, 33}, {1, T, 1}})
      is_the_recurrence(make_problem(size, 1), words(size));
  for (const Wkv4Size size : {Wkv4Size{1, 2, 2056}, {3, kChunk + 1, 2056}, {3, 7 * kChunk, 8}})
    is_the_recurrence(make_problem(size, 2), words(size));
}

void at_extremes() {
  const Wkv4Size size{2, 3 * kChunk + 5, 40};
  const int64_t n = size.B * size.T * size.C;
  auto p = make_problem(size, 3);
  for (const float offset : {-80.0f, 80.0f, 1e4f, -1e4f}) {
    auto shifted = p;
    for (float& k : shifted.in[2]) k += offset;
    is_the_recurrence(shifted, "k + " + std::to_string(offset));
  }
  auto jumps = p;
  for (int64_t i = 0; i < n; ++i) jumps.in[2][i] += i / size.C % 7 == 3 ? 1e4f : i / size.C % 11 == 5 ? -1e4f : 0;
  is_the_recurrence(jumps, "jumps");
  auto empty = p;  // the beginning of a text
  std::fill(empty.in[4].begin(), empty.in[4].end(), 0.0f);
  std::fill(empty.in[5].begin(), empty.in[5].end(), 0.0f);
  std::fill(empty.in[6].begin(), empty.in[6].end(), -1e30f);
  is_the_recurrence(empty, "empty");
  auto ties = p;  // max + decay is k, again and again: the gradient is shared
  std::fill(ties.in[0].begin(), ties.in[0].end(), -1.0f);
  for (float& k : ties.in[2]) k = std::round(k / 2);
  for (float& max : ties.in[6]) max = std::round(max);
  is_the_recurrence(ties, "ties");
  // In each chunk one tie, and never a larger k: what the last max's gradient is halved by on its way to the first max.
  for (int64_t i = 0; i < n; ++i) {
    const int64_t t = i / size.C % size.T, first_max = 3;
    ties.in[2][i] = t % kChunk == 5 ? first_max - (t + 1) : -1000;
  }
  std::fill(ties.in[6].begin(), ties.in[6].end(), 3.0f);
  is_the_recurrence(ties, "one tie a chunk");
}

// More sequences than a grid has rows, each with a single number.
void with_many_sequences() {
  const auto p = make_problem({65537, 1, 1}, 6);
  const auto got = forward(p), expected = forward(p, false);
  for (int i = 0; i < 4; ++i) CHECK(got[i] == expected[i], i);
}

template <class Real>
Problem<Real> part(const Problem<Real>& p, int64_t b, int64_t begin, int64_t end) {
  Problem<Real> to{{1, end - begin, p.size.C}, p.in, p.grad};
  const int64_t C = p.size.C;
  for (auto* tokens : {&to.in[2], &to.in[3], &to.grad[0]}) {
    const auto from = tokens->begin() + b * p.size.T * C;
    *tokens = std::vector<Real>(from + begin * C, from + end * C);
  }
  for (auto* rows : {&to.in[4], &to.in[5], &to.in[6], &to.grad[1], &to.grad[2], &to.grad[3]})
    *rows = std::vector<Real>(rows->begin() + b * C, rows->begin() + (b + 1) * C);
  return to;
}

template <class Real>
bool starts_with(const std::vector<Real>& all, int64_t from, const std::vector<Real>& some) {
  return memcmp(all.data() + from, some.data(), some.size() * sizeof(Real)) == 0;
}

void bits_repeat_and_do_not_depend_on_the_batch() {
  const Wkv4Size size{3, 2 * kChunk + 9, 33};
  const auto p = make_problem(size, 4);
  const auto whole = forward(p), again = forward(p);
  const auto whole_grads = backward(p), grads_again = backward(p);
  for (int i = 0; i < 4; ++i) CHECK(starts_with(whole[i], 0, again[i]), i);
  for (int i = 0; i < 7; ++i) CHECK(starts_with(whole_grads[i], 0, grads_again[i]), i);
  for (int64_t b = 0; b < size.B; ++b) {
    const auto alone = part(p, b, 0, size.T);
    const auto row = forward(alone);
    const auto row_grads = backward(alone);
    for (int i = 0; i < 4; ++i) CHECK(starts_with(whole[i], b * row[i].size(), row[i]), b, i);
    for (int i = 2; i < 7; ++i) CHECK(starts_with(whole_grads[i], b * row_grads[i].size(), row_grads[i]), b, i);
  }
}

void bits_do_not_depend_on_where_calls_end(int64_t T, std::vector<int64_t> ends) {
  const auto p = make_problem({1, T, 20}, 5);
  const auto whole = forward(p);
  auto state = p;
  int64_t begin = 0;
  for (const int64_t end : ends) {
    auto piece = part(state, 0, begin, end);
    const auto got = forward(piece);
    CHECK(starts_with(whole[0], begin * p.size.C, got[0]), T, begin, end);
    for (int i = 1; i < 4; ++i) state.in[3 + i] = got[i];
    begin = end;
  }
  for (int i = 1; i < 4; ++i) CHECK(starts_with(whole[i], 0, state.in[3 + i]), T, i);
}

void nan_is_not_hidden() {
  auto p = make_problem({1, 3 * kChunk, 4}, 6);
  p.in[2][(kChunk + 3) * 4 + 2] = NAN;
  const auto r = forward(p);
  for (int64_t t = 0; t < p.size.T; ++t)
    for (int64_t c = 0; c < 4; ++c) CHECK(std::isnan(r[0][t * 4 + c]) == (c == 2 && t >= kChunk + 3), t, c);
  CHECK(std::isnan(r[1][2]) && !std::isnan(r[1][1]));
}

void nothing_is_no_error() {
  const Problem<float> p{{0, 5, 8}, {}, {}};
  (void)forward(p);
  Gradients<float> r;
  r[0].assign(8, NAN), r[1].assign(8, NAN);
  const Wkv4InputGrads<float> out{r[0].data(), r[1].data(), nullptr, nullptr, nullptr, nullptr, nullptr};
  CHECK(cuda::wkv4_backward<float>(p.size, p.inputs(), p.grads(), out, nullptr, nullptr) == cudaSuccess);
  CHECK(r[0] == std::vector<float>(8, 0) && r[1] == std::vector<float>(8, 0));
}

// How far each is from double over a long text. Printed, and the scan may not be worse.
void report() {
  auto p = make_problem({1, 8192, 16}, 7);
  for (float& w : p.in[0]) w *= 1e-4f;
  const auto exact = comparable(forward(p.as<double>(), false)), scan = comparable(forward(p)),
             serial = comparable(forward(p, false));
  const char* const names[] = {"y", "num / den", "log(den) + max"};
  for (int i = 0; i < 3; ++i) {
    std::printf("8192 tokens, error of %s: scan %.2g, serial %.2g\n", names[i], error(scan[i], exact[i]),
                error(serial[i], exact[i]));
    CHECK(error(scan[i], exact[i]) <= error(serial[i], exact[i]) + 1e-7);
  }
}

}  // namespace

int main() {
  at_odd_sizes();
  with_many_sequences();
  at_extremes();
  bits_repeat_and_do_not_depend_on_the_batch();
  bits_do_not_depend_on_where_calls_end(kChunk - 1, {1, 2, 9, kChunk - 1});
  bits_do_not_depend_on_where_calls_end(5 * kChunk + 3, {kChunk, 3 * kChunk, 4 * kChunk, 5 * kChunk + 3});
  nan_is_not_hidden();
  nothing_is_no_error();
  report();
  return failures();
}

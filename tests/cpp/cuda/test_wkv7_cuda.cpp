// wkv7 and wkv7_backward against their definitions in double precision, in every order of threads.
#include "kernels/cuda/wkv7.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "emulation.h"
#include "wkv7_definition.h"

using namespace rwkv;
using namespace rwkv::definition;

namespace {

template <class Real>
Result<Real> forward(const Problem<Real>& p) {
  Result<Real> r{Numbers<Real>(p.in[R].size(), Real(NAN)), Numbers<Real>(p.in[State].size(), Real(NAN))};
  CHECK(cuda::wkv7<Real>(p.size, p.inputs(), {r.y.data(), r.state.data()}, nullptr) == cudaSuccess);
  return r;
}

template <class Real>
Gradients<Real> backward(const Problem<Real>& p) {
  Gradients<Real> g;
  for (int i = 0; i < kInputs; ++i) g[i].assign(p.in[i].size(), Real(NAN));
  Numbers<Real> scratch(cuda::wkv7_backward_scratch_numbers(p.size), Real(NAN));
  const Wkv7InputGrads<Real> out{g[R].data(),     g[W].data(), g[K].data(),    g[V].data(),
                                 g[Kappa].data(), g[A].data(), g[State].data()};
  CHECK(cuda::wkv7_backward<Real>(p.size, p.inputs(), {p.dy.data(), p.dstate.data()}, out, scratch.data(), nullptr) ==
        cudaSuccess);
  return g;
}

// The largest difference, as a part of the largest number; NaN if there is one.
template <class Real>
double error(const Numbers<Real>& got, const Numbers<double>& exact) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::abs(got[i] - exact[i]);
    if (!(difference <= worst)) worst = difference;
    largest = std::max(largest, std::abs(exact[i]));
  }
  return worst / largest;
}

std::string words(Wkv7Size s) {
  return std::to_string(s.B) + " x " + std::to_string(s.T) + " x " + std::to_string(s.H) + " x " + std::to_string(s.N);
}

template <class Real>
void close_to(const std::pair<Result<double>, Gradients<double>>& exact, const Problem<Real>& p, double tolerance) {
  emulation::in_every_order([&](const char* order) {
    const auto [y, state] = forward(p);
    CHECK(error(y, exact.first.y) <= tolerance, words(p.size), order, error(y, exact.first.y));
    CHECK(error(state, exact.first.state) <= tolerance, words(p.size), order, error(state, exact.first.state));
    const auto grads = backward(p);
    for (int i = 0; i < kInputs; ++i)
      CHECK(error(grads[i], exact.second[i]) <= tolerance, words(p.size), order, i, error(grads[i], exact.second[i]));
  });
}

void is_the_definition(Wkv7Size size) {
  const auto p = make_problem(size);
  const auto exact = defined(p.as<double>());
  close_to(exact, p, 4e-6);
  close_to(exact, p.as<double>(), 1e-14);
}

// The gradients written out above are those of the recurrence: its difference quotient along a random direction.
void gradients_are_differences() {
  const auto p = make_problem({2, 5, 2, 6}).as<double>();
  const auto direction = make_problem(p.size, 2).as<double>();
  const auto grads = defined(p).second;
  for (int i = 0; i < kInputs; ++i) {
    double along = 0, difference = 0;
    for (size_t n = 0; n < grads[i].size(); ++n) along += grads[i][n] * direction.in[i][n];
    for (const double step : {1e-5, -1e-5}) {
      auto moved = p;
      for (size_t n = 0; n < grads[i].size(); ++n) moved.in[i][n] += step * direction.in[i][n];
      const auto [y, state] = defined(moved).first;
      double loss = 0;
      for (size_t n = 0; n < y.size(); ++n) loss += y[n] * p.dy[n];
      for (size_t n = 0; n < state.size(); ++n) loss += state[n] * p.dstate[n];
      difference += loss / (2 * step);
    }
    CHECK(std::abs(along - difference) <= 1e-7 * (1 + std::abs(along)), i, along, difference);
  }
}

// Tokens `begin` to `end` of sequence b.
Problem<float> part(const Problem<float>& p, int64_t b, int64_t begin, int64_t end) {
  Problem<float> to = p;
  to.size.B = 1, to.size.T = end - begin;
  const int64_t token = p.size.H * p.size.N, state = token * p.size.N;
  const auto cut = [](Numbers<float>& x, int64_t from, int64_t n) {
    x = Numbers<float>(x.begin() + from, x.begin() + from + n);
  };
  for (int i = R; i <= A; ++i) cut(to.in[i], (b * p.size.T + begin) * token, to.size.T * token);
  cut(to.dy, (b * p.size.T + begin) * token, to.size.T * token);
  cut(to.in[State], b * state, state);
  cut(to.dstate, b * state, state);
  return to;
}

bool contains(const Numbers<float>& all, int64_t from, const Numbers<float>& some) {
  return memcmp(all.data() + from, some.data(), some.size() * sizeof(float)) == 0;
}

void bits_repeat_and_do_not_depend_on_the_batch() {
  const auto p = make_problem({3, 21, 2, 40});
  const auto whole = forward(p), again = forward(p);
  const auto grads = backward(p), grads_again = backward(p);
  CHECK(whole.y == again.y && whole.state == again.state);
  CHECK(grads == grads_again);
  for (int64_t b = 0; b < p.size.B; ++b) {
    const auto alone = part(p, b, 0, p.size.T);
    const auto own = forward(alone);
    const auto own_grads = backward(alone);
    CHECK(contains(whole.y, b * own.y.size(), own.y) && contains(whole.state, b * own.state.size(), own.state), b);
    for (int i = 0; i < kInputs; ++i) CHECK(contains(grads[i], b * own_grads[i].size(), own_grads[i]), b, i);
  }
}

void bits_do_not_depend_on_where_calls_end() {
  const auto p = make_problem({1, 23, 2, 32});
  const auto whole = forward(p);
  auto rest = p;
  int64_t begin = 0;
  for (const int64_t end : {1, 3, 4, 11, 23}) {
    const auto got = forward(part(rest, 0, begin, end));
    CHECK(contains(whole.y, begin * 64, got.y), begin, end);
    rest.in[State] = got.state;
    begin = end;
  }
  CHECK(whole.state == rest.in[State]);
}

void nan_is_not_hidden() {
  auto p = make_problem({1, 6, 2, 8});
  p.in[V][3 * 16 + 5] = NAN;  // of token 3, head 0
  const auto [y, state] = forward(p);
  for (int64_t i = 0; i < 6 * 16; ++i) CHECK(std::isnan(y[i]) == (i / 16 >= 3 && i % 16 == 5), i);
  for (int64_t i = 0; i < 128; ++i) CHECK(std::isnan(state[i]) == (i / 8 == 5), i);
}

void sizes_at_the_ends() {
  for (const Wkv7Size size : {Wkv7Size{0, 3, 2, 8}, {1, 3, 0, 8}, {1, 3, 2, 0}}) {
    const Problem<float> p{size, {}, {}, {}};
    (void)forward(p);
    (void)backward(p);
  }
  const Problem<float> p{{1, 1, 1, 129}, {}, {}, {}};
  CHECK(cuda::wkv7<float>(p.size, p.inputs(), {nullptr, nullptr}, nullptr) == cudaErrorInvalidValue);
}

}  // namespace

int main() {
  gradients_are_differences();
  for (const Wkv7Size size : {Wkv7Size{1, 1, 1, 1}, {2, 2, 3, 32}, {1, 7, 1, 64}, {2, 5, 2, 19}, {1, 129, 2, 32}})
    is_the_definition(size);
  is_the_definition({1, 18, 1, 33});  // two chunks of the backward pass
  is_the_definition({1, 290, 1, 3});  // and larger ones
  is_the_definition({1, 2, 1, 128});
  is_the_definition({1, 17, 1, 65});
  bits_repeat_and_do_not_depend_on_the_batch();
  bits_do_not_depend_on_where_calls_end();
  nan_is_not_hidden();
  sizes_at_the_ends();
  return failures();
}

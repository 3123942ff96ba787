// The recurrence against its definition in double precision, and the gradients against difference quotients.
#include "kernels/cpu/wkv4.h"

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "threads.h"

using namespace rwkv;

namespace {

template <class Real>
struct Problem {
  Wkv4Size size;
  std::vector<Real> decay, first, k, v, num, den, max;

  Problem(Wkv4Size s, unsigned seed) : size(s) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    auto fill = [&](std::vector<Real>& to, int64_t n, auto value) {
      for (int64_t i = 0; i < n; ++i) to.push_back(static_cast<Real>(value(normal(random))));
    };
    const auto same = [](double x) { return x; };
    fill(decay, s.C, [](double x) { return -std::exp(x); });
    fill(first, s.C, same);
    fill(k, s.B * s.T * s.C, same);
    fill(v, s.B * s.T * s.C, same);
    fill(num, s.B * s.C, same);
    fill(den, s.B * s.C, [](double x) { return std::abs(x) + 0.1; });
    fill(max, s.B * s.C, same);
  }
  Wkv4Inputs<Real> inputs() const {
    return {decay.data(), first.data(), k.data(), v.data(), num.data(), den.data(), max.data()};
  }
};

template <class Real>
struct Result {
  std::vector<Real> y, num, den, max;
};

template <class Real>
Result<Real> run(const Problem<Real>& p, const cpu::Run& threads) {
  const auto [B, T, C] = p.size;
  const Real poison = std::nan("");
  Result<Real> r{std::vector<Real>(B * T * C, poison), std::vector<Real>(B * C, poison),
                 std::vector<Real>(B * C, poison), std::vector<Real>(B * C, poison)};
  cpu::wkv4<Real>(p.size, p.inputs(), {r.y.data(), r.num.data(), r.den.data(), r.max.data()}, threads);
  return r;
}

void forward_is_the_definition(Wkv4Size size) {
  const Problem<float> p(size, 1);
  const auto r = run(p, on_threads(2));
  const auto [B, T, C] = size;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t c = 0; c < C; ++c) {
      const int64_t row = b * C + c;
      double A = p.num[row] * std::exp(double(p.max[row])), D = p.den[row] * std::exp(double(p.max[row]));
      for (int64_t t = 0; t < T; ++t) {
        const int64_t at = (b * T + t) * C + c;
        const double e = std::exp(double(p.first[c]) + p.k[at]);
        const double y = (A + e * p.v[at]) / (D + e);
        CHECK(std::abs(r.y[at] - y) < 1e-5 * (1 + std::abs(y)), r.y[at], y);
        A = std::exp(double(p.decay[c])) * A + std::exp(double(p.k[at])) * p.v[at];
        D = std::exp(double(p.decay[c])) * D + std::exp(double(p.k[at]));
      }
      CHECK(std::abs(r.num[row] / r.den[row] - A / D) < 1e-5 * (1 + std::abs(A / D)), r.num[row], r.den[row]);
      CHECK(std::abs(std::log(r.den[row]) + r.max[row] - std::log(D)) < 1e-3);
    }
  }
}

// sum(weights * outputs), a scalar to differentiate
double loss(const Problem<double>& p, const std::vector<double>& weights) {
  const auto r = run(p, on_threads(1));
  double sum = 0;
  size_t i = 0;
  for (const auto* part : {&r.y, &r.num, &r.den, &r.max}) {
    for (double x : *part) sum += weights[i++] * x;
  }
  return sum;
}

template <class Real>
struct Grads {
  std::vector<Real> decay, first, k, v, num, den, max;
};

// `weights`, the gradients of y and of the state after it, one after the other
template <class Real>
Grads<Real> run_backward(const Problem<Real>& p, const std::vector<Real>& weights, const cpu::Run& threads) {
  const auto [B, T, C] = p.size;
  const Real *w = weights.data(), poison = std::nan("");
  const std::vector<Real> vector(C, poison), tokens(B * T * C, poison), row(B * C, poison);
  Grads<Real> g{vector, vector, tokens, tokens, row, row, row};
  cpu::wkv4_backward<Real>(
      p.size, p.inputs(), {w, w + B * T * C, w + B * T * C + B * C, w + B * T * C + 2 * B * C},
      {g.decay.data(), g.first.data(), g.k.data(), g.v.data(), g.num.data(), g.den.data(), g.max.data()}, threads);
  return g;
}

template <class Real>
std::vector<Real> random_weights(Wkv4Size size) {
  const auto [B, T, C] = size;
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<Real> weights(B * T * C + 3 * B * C);
  for (auto& w : weights) w = static_cast<Real>(normal(random));
  return weights;
}

void backward_is_the_slope(Wkv4Size size) {
  Problem<double> p(size, 2);
  const auto weights = random_weights<double>(size);
  const auto grads = run_backward(p, weights, on_threads(2));
  const std::pair<std::vector<double>*, const std::vector<double>*> pairs[] = {
      {&p.decay, &grads.decay}, {&p.first, &grads.first}, {&p.k, &grads.k},    {&p.v, &grads.v},
      {&p.num, &grads.num},     {&p.den, &grads.den},     {&p.max, &grads.max}};
  for (auto [value, grad] : pairs) {
    for (size_t i = 0; i < value->size(); i += 3) {
      const double step = 1e-6, kept = (*value)[i];
      (*value)[i] = kept + step;
      const double high = loss(p, weights);
      (*value)[i] = kept - step;
      const double low = loss(p, weights);
      (*value)[i] = kept;
      const double slope = (high - low) / (2 * step);
      CHECK(std::abs((*grad)[i] - slope) < 1e-6 * (1 + std::abs(slope)), (*grad)[i], slope);
    }
  }
}

template <class Real>
void threads_change_no_bit(Wkv4Size size) {
  const Problem<Real> p(size, 4);
  const auto weights = random_weights<Real>(size);
  check_same_bits([&](const cpu::Run& threads) {
    const auto r = run(p, threads);
    return bytes_of(r.y, r.num, r.den, r.max);
  });
  check_same_bits([&](const cpu::Run& threads) {
    const auto g = run_backward(p, weights, threads);
    return bytes_of(g.decay, g.first, g.k, g.v, g.num, g.den, g.max);
  });
}

}  // namespace

int main() {
  for (const Wkv4Size size : {Wkv4Size{1, 1, 1}, {2, 5, 16}, {3, 129, 19}, {1, 2, 33}}) forward_is_the_definition(size);
  for (const Wkv4Size size : {Wkv4Size{1, 1, 3}, {2, 4, 16}, {2, 6, 19}}) backward_is_the_slope(size);
  for (const Wkv4Size size : {Wkv4Size{1, 3, 1}, {3, 9, 120}}) {
    threads_change_no_bit<float>(size);
    threads_change_no_bit<double>(size);
  }
  return failures();
}

// wkv7 and its gradients as they are defined, in double precision, and arguments for them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "kernels/wkv7.h"

namespace rwkv::definition {

template <class Real>
using Numbers = std::vector<Real>;
enum Input { R, W, K, V, Kappa, A, State, kInputs };

// The seven arguments, and the gradients of y and of the new state.
template <class Real>
struct Problem {
  Wkv7Size size;
  std::array<Numbers<Real>, kInputs> in;
  Numbers<Real> dy, dstate;

  Wkv7Inputs<Real> inputs() const {
    return {in[R].data(), in[W].data(), in[K].data(), in[V].data(), in[Kappa].data(), in[A].data(), in[State].data()};
  }
  template <class To>
  Problem<To> as() const {
    Problem<To> to{size, {}, {dy.begin(), dy.end()}, {dstate.begin(), dstate.end()}};
    for (int i = 0; i < kInputs; ++i) to.in[i].assign(in[i].begin(), in[i].end());
    return to;
  }
};

inline Problem<float> make_problem(Wkv7Size s, unsigned seed = 1) {
  Problem<float> p{s, {}, {}, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> rate(0, 1);
  for (int64_t i = 0; i < s.B * s.T * s.H * s.N; ++i) {
    for (const Input x : {R, K, V}) p.in[x].push_back(normal(random));
    p.in[W].push_back(i % 7 == 0 ? 1e-4f : 0.545f + 0.455f * rate(random));
    p.in[Kappa].push_back(normal(random) / std::sqrt(static_cast<float>(s.N)));
    p.in[A].push_back(rate(random));
    p.dy.push_back(normal(random));
  }
  for (int64_t i = 0; i < s.B * s.H * s.N * s.N; ++i) {
    p.in[State].push_back(normal(random));
    p.dstate.push_back(normal(random));
  }
  return p;
}

template <class Real>
struct Result {
  Numbers<Real> y, state;
};
template <class Real>
using Gradients = std::array<Numbers<Real>, kInputs>;

// The recurrence of one head as it is defined, and its gradients by the chain rule, from all of its states.
struct Head {
  const Problem<double>& p;
  int64_t head;
  int64_t N = p.size.N, first = head * N * N;
  Numbers<Numbers<double>> S{{p.in[State].begin() + first, p.in[State].begin() + first + N * N}};

  int64_t at(int64_t t) const { return ((head / p.size.H * p.size.T + t) * p.size.H + head % p.size.H) * N; }

  void forward(Result<double>& out) {
    for (int64_t t = 0; t < p.size.T; ++t) {
      S.push_back(S.back());
      for (int64_t i = 0; i < N; ++i) {
        double removed = 0, y = 0;
        for (int64_t j = 0; j < N; ++j) removed += S[t][i * N + j] * p.in[Kappa][at(t) + j];
        for (int64_t j = 0; j < N; ++j) {
          const int64_t c = at(t) + j;
          double& s = S[t + 1][i * N + j];
          s = s * p.in[W][c] - removed * p.in[Kappa][c] * p.in[A][c] + p.in[V][at(t) + i] * p.in[K][c];
          y += s * p.in[R][c];
        }
        out.y[at(t) + i] = y;
      }
    }
    std::copy(S.back().begin(), S.back().end(), out.state.begin() + first);
  }

  void backward(Gradients<double>& g) const {
    Numbers<double> G(p.dstate.begin() + first, p.dstate.begin() + first + N * N);
    for (int64_t t = p.size.T - 1; t >= 0; --t) {
      for (int64_t i = 0; i < N; ++i) {
        const double dy = p.dy[at(t) + i], v = p.in[V][at(t) + i];
        double removed = 0, d_removed = 0;
        for (int64_t j = 0; j < N; ++j) {
          const int64_t c = at(t) + j;
          g[R][c] += S[t + 1][i * N + j] * dy;
          G[i * N + j] += dy * p.in[R][c];
          removed += S[t][i * N + j] * p.in[Kappa][c];
          d_removed -= G[i * N + j] * p.in[Kappa][c] * p.in[A][c];
        }
        for (int64_t j = 0; j < N; ++j) {
          const int64_t c = at(t) + j;
          double& grad = G[i * N + j];
          const double s = S[t][i * N + j], from_replaced = -grad * removed;
          g[V][at(t) + i] += grad * p.in[K][c];
          g[K][c] += grad * v;
          g[W][c] += grad * s;
          g[Kappa][c] += from_replaced * p.in[A][c] + s * d_removed;
          g[A][c] += from_replaced * p.in[Kappa][c];
          grad = grad * p.in[W][c] + d_removed * p.in[Kappa][c];
        }
      }
    }
    std::copy(G.begin(), G.end(), g[State].begin() + first);
  }
};

inline std::pair<Result<double>, Gradients<double>> defined(const Problem<double>& p) {
  Result<double> out{Numbers<double>(p.in[R].size()), Numbers<double>(p.in[State].size())};
  Gradients<double> g;
  for (int i = 0; i < kInputs; ++i) g[i].assign(p.in[i].size(), 0);
  for (int64_t i = 0; i < p.size.B * p.size.H; ++i) {
    Head head{p, i};
    head.forward(out);
    head.backward(g);
  }
  return {out, g};
}

}  // namespace rwkv::definition

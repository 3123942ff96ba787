// Normalised embeddings against their definition in double, and the positions that they count.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "emulation.h"
#include "kernels/cuda/embed_norm.h"
#include "kernels/tiles.h"

using namespace rwkv;

namespace {

// Numbers that bfloat16 has too.
float rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits &= 0xffff0000u;
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <class Number>
void test(const char* order, int64_t B, int64_t C, const std::vector<float>& numbers, const Number* table, int64_t V) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> weight(C), bias(C), out(B * C, NAN);
  for (int64_t c = 0; c < C; ++c) weight[c] = normal(random), bias[c] = normal(random);
  std::vector<int64_t> tokens;
  for (int64_t b = 0; b < B; ++b) tokens.push_back((b * 3 + 1) % V);
  const LayerNorm norm{weight.data(), bias.data(), 1e-5f};
  std::vector<int64_t> positions, slots, after(B, -1);
  for (int64_t s = 0; s < 2 * B + 1; ++s) positions.push_back((int64_t{1} << 40) + 7 * s);
  for (int64_t b = 0; b < B; ++b) slots.push_back(2 * (B - b));
  const std::vector<int64_t> before = positions;
  const bool counts = C != 40;
  const cuda::Counted counted{counts ? positions.data() : nullptr, slots.data(), after.data()};
  CHECK(cuda::embed_norm(tokens.data(), B, table, C, norm, counted, out.data(), nullptr) == cudaSuccess, order, B, C);
  for (int64_t b = 0; b < B; ++b) CHECK(after[b] == (counts ? before[slots[b]] + 1 : -1), order, B, b, after[b]);
  for (int64_t s = 0; s < 2 * B + 1; ++s) CHECK(positions[s] == before[s] + (counts && s && s % 2 == 0), order, B, s);
  for (int64_t b = 0; b < B; ++b) {
    const float* const row = &numbers[tokens[b] * C];
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < C; ++c) mean += row[c] / static_cast<double>(C);
    for (int64_t c = 0; c < C; ++c) variance += (row[c] - mean) * (row[c] - mean) / static_cast<double>(C);
    for (int64_t c = 0; c < C; ++c) {
      const double exact = (row[c] - mean) / std::sqrt(variance + 1e-5) * weight[c] + bias[c];
      CHECK(std::abs(out[b * C + c] - exact) < 4e-6 * (1 + std::abs(exact)), order, B, C, b, c, out[b * C + c], exact);
    }
  }
}

}  // namespace

int main() {
  emulation::in_every_order([](const char* order) {
    for (const int64_t C : {1, 40, 300, 700}) {
      const int64_t V = 5;
      std::mt19937 random(1);
      std::normal_distribution<float> normal(2);
      std::vector<float> numbers;
      std::vector<Bfloat16> halves;
      for (int64_t i = 0; i < V * C; ++i) {
        numbers.push_back(rounded(normal(random)));
        uint32_t bits;
        memcpy(&bits, &numbers.back(), sizeof bits);
        halves.push_back({static_cast<uint16_t>(bits >> 16)});
      }
      test(order, 3, C, numbers, numbers.data(), V);
      test(order, 2, C, numbers, halves.data(), V);
      test(order, 0, C, numbers, numbers.data(), V);
    }
  });
  return failures();
}

#include "kernels/cpu/residual_input_product.h"

#include "kernels/cpu/input_product.h"
#include "kernels/cpu/input_product_strips.h"

namespace rwkv::cpu {
namespace {

// So many rows of activations wait for arithmetic rather than for memory.
constexpr int64_t kMany = 5;

bool in_strips(const ResidualInputProduct& product) {
  return product.matrix.format == Format::int8 && product.B >= kMany;
}

}  // namespace

int64_t ResidualInputProduct::scratch_bytes() const {
  if (in_strips(*this)) return StripProduct::scratch_bytes(matrix.K, B);
  return kInputParts * B * matrix.N * static_cast<int64_t>(sizeof(float));
}

void residual_input_product(const ResidualInputProduct& product, void* scratch, const Run& run) {
  if (in_strips(product)) return StripProduct::compute(product, scratch, run);
  const auto& [matrix, a, B, gate, x, y] = product;
  const int64_t size = B * matrix.N;
  auto* const parts = static_cast<float*>(scratch);  // (kInputParts, B, N)
  run(kInputParts, B * matrix.K * matrix.N / kInputParts, [=, &matrix, a = a, B = B](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) input_product(matrix, a, B, part, parts + part * size);
  });
  run(size, kInputParts, [=, gate = gate, x = x, y = y](int64_t begin, int64_t end) {
    float* const sums = parts;  // those of the first part
    for (int64_t part = 1; part < kInputParts; ++part)
      for (int64_t i = begin; i < end; ++i) sums[i] += parts[part * size + i];
    if (gate) {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] + gate[i] * sums[i];
    } else {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] + sums[i];
    }
  });
}

}  // namespace rwkv::cpu

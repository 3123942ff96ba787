#include "kernels/cpu/input_product.h"

#include "kernels/cpu/input_product_int4.h"
#include "kernels/cpu/input_product_int8.h"

namespace rwkv::cpu {

std::pair<int64_t, int64_t> inputs_of_part(int64_t K, int64_t part) {
  const int64_t groups = (K + kGroup - 1) / kGroup;
  return {groups * part / kInputParts * kGroup, std::min(K, groups * (part + 1) / kInputParts * kGroup)};
}

void input_product(const Matrix& matrix, const float* x, int64_t B, int64_t part, float* sums) {
  const auto [begin, end] = inputs_of_part(matrix.K, part);
  for_format(matrix.format, [&, begin = begin, end = end]<class Weight>(Weight) {
    InputProduct<Weight>::multiply(matrix, x, B, begin, end, sums);
  });
}

}  // namespace rwkv::cpu

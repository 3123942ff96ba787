#include "kernels/cpu/input_product.h"

#include "kernels/cpu/input_product_int4.h"
#include "kernels/cpu/input_product_int8.h"

namespace rwkv::cpu {

void input_product(const Matrix& matrix, const float* x, int64_t B, int64_t part, float* sums) {
  const int64_t groups = (matrix.K + kGroup - 1) / kGroup;
  const int64_t begin = groups * part / kInputParts * kGroup,
                end = std::min(matrix.K, groups * (part + 1) / kInputParts * kGroup);
  for_format(matrix.format,
             [&]<class Weight>(Weight) { InputProduct<Weight>::multiply(matrix, x, B, begin, end, sums); });
}

}  // namespace rwkv::cpu

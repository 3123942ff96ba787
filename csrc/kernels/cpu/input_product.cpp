#include "kernels/cpu/input_product.h"

#include "kernels/cpu/input_product_int4.h"
#include "kernels/cpu/input_product_int8.h"

namespace rwkv::cpu {

void input_product(const Matrix& matrix, const float* x, int64_t B, int64_t part, float* sums) {
  const auto [begin, end] = inputs_of_part(matrix.K, part);
  for_format(matrix.format, [&, begin = begin, end = end]<class Weight>(Weight) {
    InputProduct<Weight>::multiply(matrix, x, B, begin, end, sums);
  });
}

}  // namespace rwkv::cpu

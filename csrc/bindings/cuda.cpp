// The operators of the CUDA library, in one translation unit: reading torch's headers takes six seconds, ten times what
// the rest of a binding does.
#include "bindings/activate_rows_cuda.h"
#include "bindings/draw_tokens_cuda.h"
#include "bindings/embed_norm_cuda.h"
#include "bindings/linear_cuda.h"
#include "bindings/mixing4_steps_cuda.h"
#include "bindings/mixing7_steps_cuda.h"
#include "bindings/philox_cuda.h"
#include "bindings/prefill_cuda.h"
#include "bindings/quantised_product_cuda.h"
#include "bindings/scale_rows_cuda.h"
#include "bindings/wkv4_cuda.h"
#include "bindings/wkv7_cuda.h"

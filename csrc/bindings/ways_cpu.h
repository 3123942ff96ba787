// What `native/ways.py` calls to choose between ways to compute.
#pragma once

#include "kernels/cpu/ways.h"

extern "C" void rwkv_engine_use_bfloat16_dot_products(int use) { rwkv::cpu::bfloat16_dot_products = use != 0; }

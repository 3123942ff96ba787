// What `native/ways.py` calls to choose between ways to compute.
#pragma once

#include "kernels/cpu/ways.h"

// `bfloat16`: a number of Bfloat16Way.
extern "C" void rwkv_engine_use_ways(int bfloat16, int int8_in_amx) {
  rwkv::cpu::bfloat16_way = static_cast<rwkv::cpu::Bfloat16Way>(bfloat16);
  rwkv::cpu::int8_in_amx = int8_in_amx != 0;
}

// Intel's Advanced Matrix Extensions (AMX): eight tile registers of 16 rows of 64 bytes, and products of two of them.
//
// The instructions are written out, because a kernel is compiled for processors with and without them, and chosen when
// it runs. With RWKV_EMULATED_AMX they are plain C++ that does what Intel's manual says, for tests on other processors.
// Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/lanes.h"

#if defined(RWKV_EMULATED_AMX)
#define RWKV_AMX 1
#include <cmath>
#elif defined(__AVX512BF16__) && defined(__linux__) && \
    __has_include(<amxbf16intrin.h>)  // then the assembler knows AMX
#define RWKV_AMX 1
#endif

#ifdef RWKV_AMX
namespace rwkv::cpu::amx {

constexpr int kTileBytes = 64;  // of a row of a tile
constexpr int kTileSize = 16 * kTileBytes;

#ifdef RWKV_EMULATED_AMX

inline thread_local char registers[8][16][kTileBytes];

// Tiles are usable while a scope exists in the thread.
struct Scope {};

template <int tile>
void zero() {
  memset(registers[tile], 0, kTileSize);
}

// Rows are `stride` bytes apart.
template <int tile>
void load(const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row)
    memcpy(registers[tile][row], static_cast<const char*>(from) + row * stride, kTileBytes);
}

template <int tile>
void store(void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row) memcpy(static_cast<char*>(to) + row * stride, registers[tile][row], kTileBytes);
}

// sums[m][n] += a[m][4 k + i] b[k][4 n + i], summed over k and i; A is the type of the bytes of a, those of b are
// signed.
template <int sums, int a, int b, class A>
void add_bytes() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      memcpy(&sum, &registers[sums][m][4 * n], sizeof sum);
      for (int k = 0; k < 16; ++k)
        for (int i = 0; i < 4; ++i)
          sum += static_cast<A>(registers[a][m][4 * k + i]) * static_cast<int8_t>(registers[b][k][4 * n + i]);
      memcpy(&registers[sums][m][4 * n], &sum, sizeof sum);
    }
}
template <int sums, int a, int b>
void add_signed() {
  add_bytes<sums, a, b, int8_t>();
}
template <int sums, int a, int b>
void add_unsigned() {
  add_bytes<sums, a, b, uint8_t>();
}

// The same with pairs of bfloat16: even and odd inputs are added up apart, and then to the sum. Denormal numbers are 0.
template <int sums, int a, int b>
void add_bfloat16() {
  const auto normal = [](float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; };
  const auto input = [&](int tile, int row, int i) {
    uint16_t bits;
    memcpy(&bits, &registers[tile][row][2 * i], sizeof bits);
    const uint32_t wide = uint32_t{bits} << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return normal(x);
  };
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float parts[2] = {}, sum;
      for (int k = 0; k < 16; ++k)
        for (int i = 0; i < 2; ++i)
          parts[i] = normal(std::fma(input(a, m, 2 * k + i), input(b, k, 2 * n + i), parts[i]));
      memcpy(&sum, &registers[sums][m][4 * n], sizeof sum);
      sum = normal(normal(sum) + normal(parts[0] + parts[1]));
      memcpy(&registers[sums][m][4 * n], &sum, sizeof sum);
    }
}

#else

// The system must permit it, see `native/ways.py`.
class Scope {
 public:
  Scope() {
    struct {
      uint8_t palette = 1, first_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};  // of a row of each tile; there are eight tiles
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64);
    for (int tile = 0; tile < 8; ++tile) config.bytes[tile] = kTileBytes, config.rows[tile] = 16;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Scope() { asm volatile("tilerelease"); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
};

template <int tile>
RWKV_INLINE void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

template <int tile>
RWKV_INLINE void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(tile), "r"(from), "r"(stride) : "memory");
}

template <int tile>
RWKV_INLINE void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(tile), "r"(to), "r"(stride) : "memory");
}

template <int sums, int a, int b>
RWKV_INLINE void add_signed() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}

template <int sums, int a, int b>
RWKV_INLINE void add_unsigned() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}

template <int sums, int a, int b>
RWKV_INLINE void add_bfloat16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(a), "i"(b));
}

#endif

}  // namespace rwkv::cpu::amx
#endif

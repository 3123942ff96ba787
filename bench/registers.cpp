// What this processor's instructions compute in registers: registers THREADS. Prints a line for each instruction that
// the processor has, with billions of multiplications and additions a second of all threads together.
//
// The loops are assembly: compilers keep arrays of vectors in memory, and would measure that.
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

// 24 independent sums, more than twice as many as two units with a latency of five cycles have in flight.
#define FOR_24(f)                                                                                                     \
  f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15) f(16) f(17) f(18) f(19) f(20) \
      f(21) f(22) f(23)
#define ZERO(i) "vpxorq %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n\t"
#define DOT_16(i) "vpdpwssd %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define DOT_8(i) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define DOT_BFLOAT16(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define FLOAT32(i) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n\t"
#define FLOAT16(i) "vcvtph2ps %%ymm30, %%zmm29\n\tvfmadd231ps %%zmm29, %%zmm31, %%zmm" #i "\n\t"

#define LOOP(name, instruction)                                                                                       \
  void name(long rounds) {                                                                                            \
    asm volatile(FOR_24(ZERO) ZERO(29) ZERO(30) ZERO(31) "1:\n\t" FOR_24(instruction) "decq %0\n\tjnz 1b\n\t"         \
                 : "+r"(rounds)                                                                                       \
                 :                                                                                                    \
                 : "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10",     \
                   "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18", "zmm19", "zmm20", "zmm21", \
                   "zmm22", "zmm23", "zmm29", "zmm30", "zmm31");                                                      \
  }
LOOP(dot_16, DOT_16)
LOOP(dot_8, DOT_8)
LOOP(dot_bfloat16, DOT_BFLOAT16)
LOOP(float32, FLOAT32)
LOOP(float16, FLOAT16)

constexpr long kRounds = 2'000'000;  // some tens of milliseconds
constexpr int kReadings = 5;

// Multiplications a second of all threads, the most of some readings: other programs can only slow it down.
double rate(void (*loop)(long), int per_instruction, int threads) {
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> at;
  std::barrier together(threads, [&]() noexcept { at.push_back(Clock::now()); });
  std::vector<std::thread> all;
  for (int thread = 0; thread < threads; ++thread)
    all.emplace_back([&] {
      for (int reading = 0; reading <= kReadings; ++reading) {
        together.arrive_and_wait();
        loop(kRounds);
      }
      together.arrive_and_wait();
    });
  for (std::thread& thread : all) thread.join();
  double least = 1e9;
  for (int reading = 1; reading <= kReadings; ++reading)  // the first one warms up
    least = std::min(least, std::chrono::duration<double>(at[reading + 1] - at[reading]).count());
  return 24.0 * kRounds * per_instruction * threads / least;
}

int main(int, char** arguments) {
  const int threads = std::atoi(arguments[1]);
  const auto print = [threads](const char* name, void (*loop)(long), int per_instruction) {
    std::printf("%s\t%.1f\n", name, rate(loop, per_instruction, threads) / 1e9);
  };
  if (!__builtin_cpu_supports("avx512f")) return 0;
  print("vfmadd231ps", float32, 16);
  print("vcvtph2ps + vfmadd231ps", float16, 16);
  if (__builtin_cpu_supports("avx512bf16")) print("vdpbf16ps", dot_bfloat16, 32);
  if (__builtin_cpu_supports("avx512vnni")) {
    print("vpdpwssd", dot_16, 32);
    print("vpdpbusd", dot_8, 64);
  }
}

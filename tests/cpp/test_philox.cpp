// Philox against the known-answer vectors published with Random123, and what is made of its bits.
#include <cstring>

#include "check.h"
#include "kernels/cpu/philox.h"
#include "kernels/philox.h"

using namespace rwkv;

namespace {

void check_words(PhiloxWords counter, uint32_t key0, uint32_t key1, PhiloxWords expected) {
  const PhiloxWords got = philox4x32(counter, key0, key1);
  CHECK(memcmp(&got, &expected, sizeof got) == 0, got.word[0], got.word[1], got.word[2], got.word[3]);
}

}  // namespace

int main() {
  constexpr uint32_t all = 0xffffffff;
  check_words({{0, 0, 0, 0}}, 0, 0, {{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}});
  check_words({{all, all, all, all}}, all, all, {{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}});
  check_words({{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}}, 0xA4093822, 0x299F31D0,
              {{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}});

  // The first two words of the second vector, and of the third with its words in the order of the arguments.
  const int64_t seeds[] = {-1, 0x299F31D0A4093822}, samples[] = {-1, 0x0370734413198A2E},
                positions[] = {-1, static_cast<int64_t>(0x85A308D3243F6A88)};
  double draws[2];
  cpu::philox_uniform(seeds, samples, positions, 2, draws);
  CHECK(draws[0] == ((uint64_t{0x408F276D} << 21) + (0x41C83B0E >> 11)) * 0x1p-53, draws[0]);
  CHECK(draws[1] == ((uint64_t{0xD16CFE09} << 21) + (0x94FDCCEB >> 11)) * 0x1p-53, draws[1]);
  return failures();
}

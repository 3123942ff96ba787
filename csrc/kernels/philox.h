// The random numbers of sampling: u = Philox(seed, sample, position). Torch-free; host and device.
//
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") is a pure function of a key and a
// counter, so a number does not depend on the device, the batch or earlier numbers.
#pragma once

#include "kernels/math.h"

namespace rwkv {

// Four 32-bit words; in a 128-bit counter the lowest is first.
struct PhiloxWords {
  uint32_t word[4];
};

// Ten rounds. Each multiplies two words, and combines the halves of the products with the other two words and the key.
RWKV_HOST_DEVICE inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  PhiloxWords c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c.word[0], product1 = uint64_t{0xCD9E8D57} * c.word[2];
    c = {{static_cast<uint32_t>(product1 >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(product1),
          static_cast<uint32_t>(product0 >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return c;
}

// A number in [0, 1) with 53 random bits; the arguments are unsigned 64-bit integers.
RWKV_HOST_DEVICE inline double philox_number(int64_t seed, int64_t sample, int64_t position) {
  const uint64_t key = seed, high = sample, low = position;
  const PhiloxWords bits = philox4x32({{static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32),
                                        static_cast<uint32_t>(high), static_cast<uint32_t>(high >> 32)}},
                                      static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  return static_cast<double>(uint64_t{bits.word[0]} << 21 | bits.word[1] >> 11) / 9007199254740992.0;  // 2^53
}

}  // namespace rwkv

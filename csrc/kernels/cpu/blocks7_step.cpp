#include "kernels/cpu/blocks7_step.h"

#include <algorithm>

#include "kernels/cpu/channel_mixing7_step.h"
#include "kernels/cpu/time_mixing7_step.h"

namespace rwkv::cpu {

int64_t scratch_bytes(std::span<const Block7Step> layers) {
  int64_t most = 0;
  for (const Block7Step& layer : layers)
    most = std::max({most, scratch_bytes(layer.time), scratch_bytes(layer.channel)});
  return most;
}

int64_t largest_loop(std::span<const Block7Step> layers) {
  int64_t largest = 0;
  for (const auto& [time, channel] : layers)
    largest = std::max({largest, 3 * time.B * time.C * time.A(), channel.B * channel.C * channel.F});
  return largest;
}

void blocks7_step(std::span<const Block7Step> layers, void* scratch, const Run& run) {
  for (const Block7Step& layer : layers) {
    time_mixing7_step(layer.time, scratch, run);
    channel_mixing7_step(layer.channel, scratch, run);
  }
}

}  // namespace rwkv::cpu

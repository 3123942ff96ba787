"""What `auto` could stream to a GPU instead of running it on the CPU."""

from __future__ import annotations

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.hardware import free_memory, gpu_count
from rwkv_engine.core.strategy import Strategy
from rwkv_engine.core.strategy_auto import RESERVE
from rwkv_engine.core.strategy_grammar import Segment


def streaming_offer(config: ModelConfig) -> Strategy | None:
    """The float16 strategy that streams the fewest layers to the only GPU, for the memory that is free now.

    `auto` does not choose it: for single tokens the CPU may be faster, which depends on its memory and on the bus.

    Returns:
        None if the whole model fits on the GPU, or main memory is too small, or there is not exactly one GPU.
    """
    if gpu_count() != 1:
        return None
    room, main = (free_memory("cuda") or 0) - RESERVE, free_memory("cpu")
    for resident in range(config.n_layer, -1, -1):
        offer = Strategy.of([Segment("cuda", "fp16", count=resident, streams=True)])
        sizes = offer.nbytes(config)
        if sizes["cuda"] <= room:
            fits = main is None or sizes.get("cpu", 0) < main
            return offer if fits and resident < config.n_layer else None
    return None

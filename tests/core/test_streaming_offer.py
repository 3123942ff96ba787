from __future__ import annotations

import pytest

from rwkv_engine import Rwkv4Config, Strategy
from rwkv_engine.core.strategy_auto import RESERVE
from rwkv_engine.core.streaming_offer import streaming_offer

CONFIG = Rwkv4Config(24, 64, 64, 256, 100)


def needed(text: str) -> dict[str, int]:
    return Strategy.parse(text).nbytes(CONFIG)


@pytest.mark.parametrize(
    ("n_gpus", "free", "main", "offer"),
    [
        (1, needed("cuda fp16")["cuda"], None, None),
        (1, needed("cuda fp16")["cuda"] - 1, None, "cuda fp16 *21+"),  # two buffers take the room of two layers
        (1, needed("cuda fp16 *7+")["cuda"], None, "cuda fp16 *7+"),
        (1, needed("cuda fp16 *7+")["cuda"] - 1, None, "cuda fp16 *6+"),
        (1, needed("cuda fp16 *0+")["cuda"], needed("cuda fp16 *0+")["cpu"] + 1, "cuda fp16 *0+"),
        (1, needed("cuda fp16 *0+")["cuda"], needed("cuda fp16 *0+")["cpu"], None),
        (1, needed("cuda fp16 *0+")["cuda"] - 1, None, None),
        (0, 0, None, None),
        (2, needed("cuda fp16 *7+")["cuda"], None, None),
    ],
)
def test_the_fewest_layers_are_streamed(n_gpus, free, main, offer, monkeypatch):
    memory = {"cuda": free + RESERVE, "cpu": main}
    monkeypatch.setattr("rwkv_engine.core.streaming_offer.gpu_count", lambda: n_gpus)
    monkeypatch.setattr("rwkv_engine.core.streaming_offer.free_memory", memory.__getitem__)
    found = streaming_offer(CONFIG)
    assert (found and str(found)) == offer

"""The sizes in which RWKV-4 models were published: name, number of layers, width."""

from __future__ import annotations

from rwkv_engine.core import ModelConfig
from rwkv_engine.errors import CheckpointError

SIZES = {
    "169M": (12, 768),
    "430M": (24, 1024),
    "1B5": (24, 2048),
    "3B": (32, 2560),
    "7B": (32, 4096),
    "14B": (40, 5120),
}


def size_of(config: ModelConfig) -> str | None:
    """The name of a model's size; None if it is not a published one."""
    return next((name for name, numbers in SIZES.items() if numbers == (config.n_layer, config.n_embd)), None)


def check_size(what: object, config: ModelConfig, size: str) -> None:
    """Refuses a model that is not of the given size.

    Raises:
        CheckpointError: its message shows both sizes.
    """
    if SIZES[size] == (config.n_layer, config.n_embd):
        return
    layers, width = SIZES[size]
    name = size_of(config)
    raise CheckpointError(
        f"{what}: has {config.n_layer} layers of width {config.n_embd}{f', which is {name}' if name else ''}; expected"
        f" {layers} of {width} for --size {size}; leave --size out, the size is read from the tensors"
    )

"""The sizes in which models were published: name, RWKV version, number of layers, width."""

from __future__ import annotations

from rwkv_engine.core import ModelConfig
from rwkv_engine.errors import CheckpointError

SIZES = {
    "169M": (4, 12, 768),
    "430M": (4, 24, 1024),
    "1B5": (4, 24, 2048),
    "3B": (4, 32, 2560),
    "7B": (4, 32, 4096),
    "14B": (4, 40, 5120),
    "0.1B": (7, 12, 768),
    "0.4B": (7, 24, 1024),
    "1.5B": (7, 24, 2048),
    "2.9B": (7, 32, 2560),
    "7.2B": (7, 32, 4096),
    "13.3B": (7, 61, 4096),
}


def size_of(config: ModelConfig) -> str | None:
    """The name of a model's size; None if it is not a published one."""
    own = config.version, config.n_layer, config.n_embd
    return next((name for name, numbers in SIZES.items() if numbers == own), None)


def check_size(what: object, config: ModelConfig, size: str) -> None:
    """Refuses a model that is not of the given size.

    Raises:
        CheckpointError: its message shows both sizes.
    """
    name = size_of(config)
    if name == size:
        return
    version, layers, width = SIZES[size]
    wanted = f"{layers} of {width}" if version == config.version else f"an RWKV-{version} of {layers} layers of {width}"
    raise CheckpointError(
        f"{what}: has {config.n_layer} layers of width {config.n_embd}{f', which is {name}' if name else ''}; expected"
        f" {wanted} for --size {size}; leave --size out, the size is read from the tensors"
    )

"""What strategies with `+` stream: which tensors stay in main memory, and what a forward pass copies over the bus."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_engine.core.config import ModelConfig, Role, TensorSpec
from rwkv_engine.core.placement import Placement

# Layers that have room on the GPU at a time: one that runs, and one that is being copied.
BUFFERS = 2
BANDWIDTH = 25e9  # bytes a second from page-locked memory over PCIe 4.0 with 16 lanes


def is_streamed(spec: TensorSpec, placement: Placement, config: ModelConfig) -> bool:
    """Whether a tensor stays in main memory: the matrices of layers that are not resident.

    Vectors, low-rank factors and the embedding are small or read by rows. The head stays on its device too, as in the
    `rwkv` package.
    """
    is_matrix = spec.role in (Role.MATRIX, Role.SPARSE_MATRIX)
    return is_matrix and not placement.resident and spec.layer < config.n_layer


def streamed_nbytes(config: ModelConfig, placements: Sequence[Placement]) -> list[int]:
    """The bytes that a forward pass copies to the device for each layer; 0 for resident layers."""
    sizes = [0] * config.n_layer
    for spec in config.tensors().values():
        if is_streamed(spec, placements[spec.layer], config):
            sizes[spec.layer] += placements[spec.layer].nbytes([spec])
    return sizes


def device_nbytes(config: ModelConfig, placements: Sequence[Placement]) -> dict[str, int]:
    """The bytes of the weights on each device, by its name; with the buffers for streamed layers."""
    sizes: dict[str, int] = {}
    for spec in config.tensors().values():
        placement = placements[spec.layer]
        device = "cpu" if is_streamed(spec, placement, config) else placement.device
        sizes[device] = sizes.get(device, 0) + placement.nbytes([spec])
    streamed = streamed_nbytes(config, placements)
    for device in {placement.device for placement in placements if not placement.resident}:
        sizes[device] = sizes.get(device, 0) + BUFFERS * max(streamed)
    return sizes


def bus_text(nbytes: int) -> str:
    """What a forward pass that copies `nbytes` costs, in words."""
    return (
        f"{nbytes / 1e6:,.1f} MB to the GPU for each token, or for each chunk of a prompt:"
        f" {1e3 * nbytes / BANDWIDTH:,.1f} ms at {BANDWIDTH / 1e9:.0f} GB/s"
    )

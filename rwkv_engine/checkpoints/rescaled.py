"""Whether transformers has divided a model's weights before it saved them.

For inference transformers divides `att.output.weight` and `ffn.value.weight` of layer i by 2^(i // R), R being its
config's `rescale_every`, and halves the residual stream after every R layers. It does so in place, at the first call in
evaluation mode; `save_pretrained` after that writes divided weights, and a config that says the same as before. Only
the weights can tell: from layer to layer their size varies, but it halves at every multiple of R in both matrices.

With y the binary logarithm of the root mean square of a matrix's typical row, for each of the two

    y[i] = a smooth curve over i  -  s (i // R)  +  what is the layer's own

and least squares give s, and how uncertain it is: near 0 as trained, near 1 if divided. A curve of second degree leaves
nothing to see where R is 1, and little where there are few layers: then s is uncertain, and nothing is said. Where the
layers' own part is a factor between 0.6 and 1.4, drawn for each, no whole model of 1000 with 24 layers and R = 6 is
taken for divided, and 2 % of the divided ones are missed; with 12 layers 0.2 % and 69 %. Factors between 0.8 and 1.2
leave no doubt even there (`tests/core/test_rescaled.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.checkpoints.checkpoint import Checkpoint

DIVIDED = ("att.output.weight", "ffn.value.weight")
_UNKNOWNS = 7  # three of each curve, and s
_MANY = 12  # layers: with so many the first and the last, which are often unlike all others, are left out
_ROWS = 16  # looked at in each matrix; few enough that nothing is noticed of it


def divisor_exponent(name: str, rescale_every: int) -> int:
    """By which power of two transformers divides a tensor, given its original name; 0 for most."""
    if rescale_every < 1 or not name.endswith(DIVIDED):
        return 0
    return int(name.split(".")[1]) // rescale_every


def looks_divided(checkpoint: Checkpoint) -> bool:
    """Whether the weights were saved divided, as far as they tell; reads a few rows of two matrices of each layer."""
    n_layer, every = checkpoint.config.n_layer, checkpoint.rescale_every
    if not 1 < every < n_layer:
        return False
    sizes = torch.tensor(
        [[_typical_size(checkpoint, f"blocks.{i}.{kind}") for i in range(n_layer)] for kind in DIVIDED],
        dtype=torch.float64,
    )
    return goes_down(sizes.log2(), every)


def divided_note(checkpoint: Checkpoint) -> str:
    """What is to be said of such a model."""
    return (
        f"{checkpoint.path}: its weights look as if transformers had divided them before it saved them (rescale_every"
        f" {checkpoint.rescale_every}), and then it writes nonsense; multiply them back with rwkv-engine convert"
        " --undo-rescale"
    )


def _typical_size(checkpoint: Checkpoint, name: str) -> float:
    matrix = checkpoint.read(name)
    rows = matrix[torch.linspace(0, len(matrix) - 1, min(_ROWS, len(matrix)), dtype=torch.float32).long()].float()
    checkpoint.release(matrix)
    return rows.square().mean(1).sqrt().median().item()


def goes_down(y: Tensor, every: int) -> bool:
    """Whether that is nearer to 1 than to 0, and surely more than 0. Arguments as for `staircase`."""
    slope, error = staircase(y, every)
    unsure = 3 + 10 / max(1, y.numel() - _UNKNOWNS)  # standard errors; more where few numbers estimate those
    return 0.5 < slope < 1.5 and slope > unsure * error


def staircase(y: Tensor, every: int) -> tuple[float, float]:
    """How far `y` goes down at each multiple of `every`, and the standard error of that.

    Args:
        y: float64 (2, L), of two matrices in each of L layers.
        every: R, at least 1.

    Returns:
        s and its error; 0 and infinity if there is nothing to be learnt.
    """
    layers = torch.arange(y.shape[1], dtype=torch.float64)
    if len(layers) >= _MANY:
        layers, y = layers[1:-1], y[:, 1:-1]
    curves = torch.linalg.qr(torch.stack([layers**power for power in range(3)], 1) / len(layers))[0]

    def beside_curves(values: Tensor) -> Tensor:
        return values - (values @ curves) @ curves.T

    stairs = beside_curves(-(layers // every))
    rest = beside_curves(y)
    weight = len(y) * stairs.square().sum().item()
    if weight < 1e-6 or y.numel() <= _UNKNOWNS or not y.isfinite().all():
        return 0.0, float("inf")
    slope = (rest @ stairs).sum().item() / weight
    variance = (rest - slope * stairs).square().sum().item() / (y.numel() - _UNKNOWNS)
    return slope, (variance / weight) ** 0.5

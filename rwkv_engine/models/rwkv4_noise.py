"""What the weights of an RWKV-4 tell about the inputs of its matrices, and about the noise that their errors cause.

A LayerNorm's output has, for normalised numbers of mean 0 and variance 1, the second moments weight^2 + bias^2; a mix
with the previous token changes them little. They are the inputs of four products of a layer and of the head. The output
matrix of time mixing reads weighted means of values, times a gate; the value matrix of channel mixing reads the square
of its key. Their moments follow from those of the LayerNorms, for inputs that are not correlated.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.models.int4 import Int4Error
from rwkv_engine.models.moments import Read, of_norm, of_product


def input_moments(name: str, read: Read) -> Tensor:
    """See `Model.input_moments`. The result has the same bits on every processor."""
    block, _, matrix = name.rpartition(".weight")[0].rpartition("att." if ".att." in name else "ffn.")
    if name == "head.weight":
        return of_norm("ln_out", read)
    if matrix == "output":
        return of_product(f"{block}att.value.weight", of_norm(f"{block}ln1", read), read)
    if matrix == "value" and ".ffn." in name:
        return of_product(f"{block}ffn.key.weight", of_norm(f"{block}ln2", read), read).square()
    return of_norm(f"{block}{'ln1' if '.att.' in name else 'ln2'}", read)


def noise(config: ModelConfig, name: str, error: Int4Error) -> float:
    """See `Model.noise`. The unit is a share of one half of a layer.

    The residual stream is the sum of 2 L halves, so their noise is a share of it that is 2 L times smaller than that of
    the head in the logits. A receptance and time mixing's key are the arguments of a sigmoid and an exponential, where
    not the relative but the absolute error counts; the factors are those measured on the embedded model.
    """
    if name == "head.weight":
        return 2 * config.n_layer * error.relative
    if name.endswith(".receptance.weight"):
        return 0.2 * error.absolute
    return 0.1 * error.absolute if name.endswith(".att.key.weight") else error.relative

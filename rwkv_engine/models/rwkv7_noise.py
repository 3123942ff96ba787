"""What the weights of an RWKV-7 tell about the inputs of its matrices, for int4; see `rwkv4_noise`.

The outputs of the LayerNorms have, for normalised numbers of mean 0 and variance 1, the second moments weight^2 +
bias^2. Those are the inputs of the receptance, key and value of time mixing, of channel mixing's key, and of the head.
The output matrix reads what GroupNorm has normalised, times a gate; the gate is taken to be alike in all channels.
Channel mixing's value matrix reads the square of its key.
"""

from __future__ import annotations

from torch import Tensor

from rwkv_engine.models.moments import Read, of_norm, of_product


def input_moments(name: str, read: Read) -> Tensor:
    """See `Model.input_moments`. The result has the same bits on every processor."""
    block, _, matrix = name.removesuffix(".weight").rpartition("att." if ".att." in name else "ffn.")
    if name == "head.weight":
        return of_norm("ln_out", read)
    if matrix == "output":
        return of_norm(f"{block}att.ln_x", read)
    if matrix == "value" and ".ffn." in name:
        return of_product(f"{block}ffn.key.weight", of_norm(f"{block}ln2", read), read).square()
    return of_norm(f"{block}{'ln1' if '.att.' in name else 'ln2'}", read)

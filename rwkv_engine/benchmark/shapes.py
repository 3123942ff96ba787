"""Sizes of models that need not be downloaded."""

from __future__ import annotations

from rwkv_engine.core import Rwkv4Config
from rwkv_engine.errors import RequestError


def _plain(n_layer: int, n_embd: int, n_vocab: int) -> Rwkv4Config:
    return Rwkv4Config(n_layer, n_embd, n_embd, 4 * n_embd, n_vocab)


SHAPES = {
    "169m": _plain(12, 768, 50277),
    "430m": _plain(24, 1024, 50277),
    "1b5": _plain(24, 2048, 50277),
    "3b": _plain(32, 2560, 50277),
    "tales": Rwkv4Config(5, 224, 224, 768, 2048),
}


def parse_shape(text: str) -> Rwkv4Config:
    """A name of `SHAPES`, or `L,C,V`: layers, width, vocabulary; channel mixing is four times as wide.

    Raises:
        RequestError: it is neither.
    """
    if text in SHAPES:
        return SHAPES[text]
    try:
        n_layer, n_embd, n_vocab = (int(part) for part in text.split(","))
    except ValueError:
        n_layer = n_embd = n_vocab = 0
    if min(n_layer, n_embd, n_vocab) < 1:
        raise RequestError(
            f"shape: got {text!r}, expected one of {', '.join(SHAPES)}, or L,C,V (layers, width, vocabulary), such as"
            " 12,768,50277"
        )
    return _plain(n_layer, n_embd, n_vocab)

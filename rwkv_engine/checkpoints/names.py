"""Tensor names: the original checkpoints' are the canonical ones; Hugging Face's differ by a fixed renaming."""

from __future__ import annotations

_RENAMES = (  # original, Hugging Face
    ("emb.weight", "embeddings.weight"),
    (".ln0.", ".pre_ln."),
    (".att.", ".attention."),
    (".ffn.", ".feed_forward."),
    (".time_mix_k", ".time_mix_key"),
    (".time_mix_v", ".time_mix_value"),
    (".time_mix_r", ".time_mix_receptance"),
)


def to_hugging_face(name: str) -> str:
    """`blocks.0.att.time_mix_k` -> `rwkv.blocks.0.attention.time_mix_key`."""
    for original, renamed in _RENAMES:
        name = name.replace(original, renamed)
    return name if name.startswith("head.") else f"rwkv.{name}"


def to_original(name: str) -> str:
    """The inverse of `to_hugging_face`; the `rwkv.` prefix may be missing. Original names come back unchanged."""
    for original, renamed in _RENAMES:
        name = name.replace(renamed, original)
    return name.removeprefix("rwkv.")


def shape_in_file(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What files have for a tensor of this original name: vectors of token shift are (1, 1, C) there."""
    return (1, 1, *shape) if ".time_mix_" in name else shape

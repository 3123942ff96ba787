"""Tensor names: the original checkpoints' are the canonical ones; Hugging Face's differ by a fixed renaming."""

from __future__ import annotations

import re

_RENAMES = (  # original, Hugging Face
    (r"^emb\.", "embeddings."),
    (r"^blocks\.0\.ln0\.", "blocks.0.pre_ln."),
    (r"\.att\.", ".attention."),
    (r"\.ffn\.", ".feed_forward."),
    (r"\.time_mix_k$", ".time_mix_key"),
    (r"\.time_mix_v$", ".time_mix_value"),
    (r"\.time_mix_r$", ".time_mix_receptance"),
)


def to_hugging_face(name: str) -> str:
    """`blocks.0.att.time_mix_k` -> `rwkv.blocks.0.attention.time_mix_key`."""
    if name == "head.weight":
        return name
    for original, renamed in _RENAMES:
        name = re.sub(original, renamed, name)
    return f"rwkv.{name}"


def to_original(name: str) -> str:
    """The inverse of `to_hugging_face`; the `rwkv.` prefix may be missing. Original names come back unchanged."""
    name = name.removeprefix("rwkv.")
    for original, renamed in _RENAMES:
        plain = re.sub(r"\\|\^|\$", "", original)
        pattern = ("^" if original.startswith("^") else "") + re.escape(renamed) + ("$" if original[-1] == "$" else "")
        name = re.sub(pattern, plain, name)
    return name

"""Tensor names. The original checkpoints' names are canonical; Hugging Face renames them, and trainers prefix them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rwkv_engine.checkpoints.contents import shown, some
from rwkv_engine.errors import CheckpointError

T = TypeVar("T")

_RENAMES = (  # original, Hugging Face
    ("emb.weight", "embeddings.weight"),
    (".ln0.", ".pre_ln."),
    (".att.", ".attention."),
    (".ffn.", ".feed_forward."),
    (".time_mix_k", ".time_mix_key"),
    (".time_mix_v", ".time_mix_value"),
    (".time_mix_r", ".time_mix_receptance"),
)
# What holds the model in a trainer (DistributedDataParallel, DeepSpeed, Lightning): any number, before every name.
_HOLDERS = re.compile(r"(?:(?:_forward_module|module|model|rwkv)\.)+")
# What torch.compile, FSDP and activation checkpointing wrap around any module: anywhere in a name.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LORA = re.compile(r"(?:^|\.)lora_")


def to_hugging_face(name: str) -> str:
    """`blocks.0.att.time_mix_k` -> `rwkv.blocks.0.attention.time_mix_key`."""
    for original, renamed in _RENAMES:
        name = name.replace(original, renamed)
    return name if name.startswith("head.") else f"rwkv.{name}"


def to_original(name: str) -> str:
    """The inverse of `to_hugging_face`, also without `rwkv.` and with trainers' prefixes; original names are unchanged.

    `_forward_module.module.rwkv.blocks.0.attention.key.weight` -> `blocks.0.att.key.weight`.
    """
    name = _WRAPPERS.sub("", name)
    if holders := _HOLDERS.match(name):
        name = name[holders.end() :]
    for original, renamed in _RENAMES:
        name = name.replace(renamed, original)
    return name


def shape_in_file(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that files have for a tensor of this original name: token-shift vectors are (1, 1, C) there."""
    return (1, 1, *shape) if ".time_mix_" in name else shape


def canonical(path: Path, tensors: Mapping[str, T], settings: Mapping[str, Any]) -> dict[str, T]:
    """Tensors by their original names.

    Args:
        path: for messages.
        tensors: by their names in the file.
        settings: those of config.json; they may say that the head is the embedding.

    Raises:
        CheckpointError: two names mean one tensor, or there are LoRA factors.
    """
    _check_merged(path, tensors)
    renamed: dict[str, T] = {}
    names: dict[str, str] = {}
    for name, tensor in tensors.items():
        original = to_original(name)
        if original in renamed:
            raise CheckpointError(
                f"{path}: {shown(names[original])} and {shown(name)} are one tensor but for a prefix; expected the"
                " weights of one model, export them alone"
            )
        renamed[original], names[original] = tensor, name
    if "head.weight" not in renamed and settings.get("tie_word_embeddings") and "emb.weight" in renamed:
        renamed["head.weight"] = renamed["emb.weight"]
    return renamed


def _check_merged(path: Path, names: Collection[str]) -> None:
    lora = [name for name in names if _LORA.search(name)]
    if not lora:
        return
    way_out = (
        "merge it into its base model (PEFT: model.merge_and_unload().save_pretrained(DIRECTORY)), and give the result"
    )
    if any(name.endswith(("emb.weight", "embeddings.weight")) for name in names):
        raise CheckpointError(f"{path}: the LoRA in it is not merged into the weights ({some(lora)}); {way_out}")
    raise CheckpointError(f"{path}: is a LoRA adapter, without the model it adapts ({some(lora)}); {way_out}")

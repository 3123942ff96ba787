"""Restores the original tensor names, to which trainers add prefixes and which Hugging Face renames."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rwkv_engine.checkpoints.contents import shown, some
from rwkv_engine.core.architectures import config_class_of
from rwkv_engine.core.config import ModelConfig
from rwkv_engine.errors import CheckpointError

T = TypeVar("T")

# Attributes under which trainers (DistributedDataParallel, DeepSpeed, Lightning) keep the model. Any number of them can
# precede a name.
_HOLDERS = re.compile(r"(?:(?:_forward_module|module|model|rwkv)\.)+")
# Attributes that torch.compile, FSDP and activation checkpointing insert where they wrap a module, anywhere in a name.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LORA = re.compile(r"(?:^|\.)lora_")


def stripped(name: str) -> str:
    """A name without the prefixes of trainers: `_forward_module.module.rwkv.blocks.0.x` -> `blocks.0.x`."""
    name = _WRAPPERS.sub("", name)
    holders = _HOLDERS.match(name)
    return name[holders.end() :] if holders else name


def canonical(
    path: Path, tensors: Mapping[str, T], settings: Mapping[str, Any]
) -> tuple[type[ModelConfig], dict[str, T]]:
    """The config class of a checkpoint's RWKV version, and its tensors by their original names.

    Args:
        path: the checkpoint's path, for messages.
        tensors: the tensors by their names in the file.
        settings: the content of config.json; `tie_word_embeddings` makes the embedding also serve as the head.

    Raises:
        CheckpointError: two names stand for the same tensor, or the file contains LoRA factors.
    """
    _check_merged(path, tensors)
    version = config_class_of([stripped(name) for name in tensors])
    renamed: dict[str, T] = {}
    names: dict[str, str] = {}
    for name, tensor in tensors.items():
        original = version.to_original(stripped(name))
        if original in renamed:
            raise CheckpointError(
                f"{path}: {shown(names[original])} and {shown(name)} differ only by a prefix; expected the"
                " weights of one model, export them alone"
            )
        renamed[original], names[original] = tensor, name
    if "head.weight" not in renamed and settings.get("tie_word_embeddings") and "emb.weight" in renamed:
        renamed["head.weight"] = renamed["emb.weight"]
    return version, renamed


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

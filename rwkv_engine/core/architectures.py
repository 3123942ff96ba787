"""The RWKV versions there are: those that run here, and signs of others."""

from __future__ import annotations

import re
from collections.abc import Collection

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.rwkv4 import Rwkv4Config

# The config class of every version that runs. `models.MODELS` has a model for each.
CONFIGS: list[type[ModelConfig]] = [Rwkv4Config]

_UNSUPPORTED = (  # a pattern in tensor names, and what it is a sign of
    (r"\.x_r$|\.r_k$", "RWKV-7"),
    (r"time_maa", "RWKV-6"),
    (r"att\.ln_x\.", "RWKV-5"),
    (r"ffnPre", "RWKV-4 trained with pre_ffn"),
    (r"^head_[qk]\.", "RWKV-4 trained with head_qk"),
    (r"^pos_emb_", "RWKV-4 trained with my_pos_emb"),
    (r"\.tiny_", "RWKV-4 trained with tiny attention"),
    (r"att\.(qq|kk|vv|oo)\.", "RWKV-4 trained with extra attention"),
    (r"ffn\.(aa|bb)\.", "RWKV-4 trained with MishGLU"),
)


def config_class_of(names: Collection[str]) -> type[ModelConfig]:
    """The config class of a checkpoint with tensors of these names, original or Hugging Face's.

    The first class serves where none matches: its `of` says what is missing.
    """
    for cls in CONFIGS:
        if cls.matches({cls.to_original(name) for name in names}):
            return cls
    return CONFIGS[0]


def unsupported_version(names: Collection[str]) -> tuple[str, str] | None:
    """A version that no class here runs, and the tensor name that gives it away; None where there is no such sign."""
    for pattern, what in _UNSUPPORTED:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found:
            return what, found
    return None

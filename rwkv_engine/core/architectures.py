"""The RWKV versions: those that run here, and how checkpoints of other versions are recognised."""

from __future__ import annotations

import re
from collections.abc import Collection

from rwkv_engine.core.config import ModelConfig
from rwkv_engine.core.rwkv4 import Rwkv4Config
from rwkv_engine.core.rwkv7 import Rwkv7Config

# The config class of every supported version. `models.MODELS` maps each to its model class.
CONFIGS: list[type[ModelConfig]] = [Rwkv4Config, Rwkv7Config]

_UNSUPPORTED = (  # a pattern that occurs in tensor names of only one architecture, and the name of that architecture
    (r"\.x_r$", "RWKV-7 without r_k"),
    (r"time_maa", "RWKV-6"),
    (r"att\.ln_x\.", "RWKV-5"),
    (r"ffnPre", "RWKV-4 trained with pre_ffn"),
    (r"^head_[qk]\.", "RWKV-4 trained with head_qk"),
    (r"^pos_emb_", "RWKV-4 trained with my_pos_emb"),
    (r"\.tiny_", "RWKV-4 trained with tiny attention"),
    (r"att\.(qq|kk|vv|oo)\.", "RWKV-4 trained with extra attention"),
    (r"ffn\.(aa|bb)\.", "RWKV-4 trained with MishGLU"),
)
_VARIANTS_OF_7 = (  # the same for checkpoints that have all that is characteristic of RWKV-7, and more
    (r"ffn\.s_emb", "RWKV-7 with DeepEmbed (RWKV-7a)"),
    (r"^blocks\.\d+\.qkv\.", "RWKV-7 with DeepEmbedAttention (RWKV-7b)"),
)


def config_class_of(names: Collection[str]) -> type[ModelConfig]:
    """The config class for a checkpoint with these tensor names, which may be the original or Hugging Face's ones.

    If no class matches, the first one is returned; its `of` then reports which tensors are missing.
    """
    for cls in CONFIGS:
        if cls.matches({cls.to_original(name) for name in names}):
            return cls
    return CONFIGS[0]


def unsupported_version(names: Collection[str]) -> tuple[str, str] | None:
    """The unsupported version to which these tensor names belong, and the name that shows it; None if none does."""
    for pattern, what in _VARIANTS_OF_7 if Rwkv7Config.matches(names) else _UNSUPPORTED:
        found = next((name for name in names if re.search(pattern, name)), None)
        if found:
            return what, found
    return None

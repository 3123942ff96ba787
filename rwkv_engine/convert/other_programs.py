"""The classes of other programs that run a converted model, one for each RWKV version, and what they need."""

from __future__ import annotations

from typing import Any

from rwkv_engine.core import ModelConfig


def class_settings(config: ModelConfig) -> dict[str, Any]:
    """Entries of config.json that follow from the version: the name of the model's class, and the class's options."""
    if config.version == 4:
        return {
            "architectures": ["RwkvForCausalLM"],
            "context_length": 1024,
            # By default transformers halves the residual stream every few layers. That changes the effect of every
            # later LayerNorm's epsilon, and divides weights in place; see `checkpoints.rescaled`.
            "rescale_every": 0,
        }
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "attention_hidden_size": config.n_att,
        "hidden_ratio": config.n_ffn / config.n_embd,
        "value_dim": [config.n_att] * config.n_layer,
        "hidden_act": "sqrelu",
        "norm_first": True,
        "norm_bias": True,
        "fuse_norm": False,
    }


def class_limit(config: ModelConfig) -> str | None:
    """Why the class that `class_settings` names cannot run this model as it should; None if it can."""
    if config.n_att != config.n_embd:
        width = f"time mixing is {config.n_att} wide and the model {config.n_embd}"
        if config.version == 4:
            their = "the RwkvForCausalLM of transformers"
            return f"{width}, so {their} fails on it as soon as it uses a state, as generate does"
        return f"{width}, which the class of flash-linear-attention does not allow"
    head_size = config.settings().get("head_dim", 64)
    if head_size != 64:
        return (
            f"its heads have {head_size} channels, for which flash-linear-attention and rwkv7-hf normalise with another"
            " epsilon than the rwkv package and rwkv_engine"
        )
    return None

"""The words of transformers' `generate` that mean nothing here, or nothing that is offered."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from rwkv_engine.errors import RequestError

# What transformers knows and nobody offers here, with the value that asks for nothing; None always does.
REFUSED: dict[str, Any] = dict.fromkeys(
    [
        "assistant_early_exit",
        "assistant_ensemble_weight",
        "assistant_model",
        "assistant_tokenizer",
        "attentions",
        "bad_words_ids",
        "begin_suppress_tokens",
        "cache_config",
        "cache_implementation",
        "constraints",
        "continuous_batching_config",
        "custom_generate",
        "dola_layers",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "inputs_embeds",
        "max_cache_len",
        "max_time",
        "negative_prompt_attention_mask",
        "negative_prompt_ids",
        "past_key_values",
        "position_ids",
        "prefill_chunk_size",
        "prefix_allowed_tokens_fn",
        "prompt_lookup_num_tokens",
        "sequence_bias",
        "speculation_type",
        "token_type_ids",
        "top_h",
        "watermarking_config",
    ]
) | {
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "token_healing": False,
    "typical_p": 1.0,
    "use_mtp": False,
}
# What changes nothing whatever it says: for beams, for assistants, for compilers, or about the file it is in.
WITHOUT_EFFECT = frozenset(
    [
        "_commit_hash",
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "compile_config",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "is_assistant",
        "length_penalty",
        "low_memory",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "renormalize_logits",
        "synced_gpus",
        "target_lookbehind",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
    ]
)


def refuse(name: str, value: Any, offered: Sequence[str]) -> None:
    """Lets pass what is offered or has no effect; nothing else is dropped without a word.

    Raises:
        RequestError: an argument that is unknown, or not offered with this value.
    """
    if name in offered or name in WITHOUT_EFFECT:
        return
    if name not in REFUSED:
        close = difflib.get_close_matches(name, offered, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(offered)}"
        raise RequestError(f"generate: unknown argument {name!r}{hint}")
    if value is not None and value != REFUSED[name]:
        shown = repr(value) if isinstance(value, int | float | str) else type(value).__name__
        raise RequestError(f"generate: {name} is not offered here, got {shown}; leave it out")

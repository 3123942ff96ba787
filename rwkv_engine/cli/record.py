"""The JSON object that `generate --json` prints for a text."""

from __future__ import annotations

from typing import Any

from rwkv_engine.generation.generated_text import GeneratedText
from rwkv_engine.pipeline import RWKV


def record(
    model: RWKV, prompt: str, generated: GeneratedText, finish_reason: str | None, n_prompt: int, seed: int
) -> dict[str, Any]:
    """The values by name: the prompt, the text, its tokens, and how it came to be."""
    values: dict[str, Any] = {
        "prompt": prompt,
        "text": generated.text,
        "tokens": generated.tokens,
        "finish_reason": finish_reason,
        "n_prompt": n_prompt,
        "seed": seed,
        "strategy": str(model.strategy),
    }
    if generated.logprobs:
        values["logprobs"] = [{"token": e.token, "logprob": e.logprob, "top": e.top} for e in generated.logprobs]
    return values

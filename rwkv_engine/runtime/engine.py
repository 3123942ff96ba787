"""When to read many tokens at once and when one: prefill in chunks, then decode."""

from __future__ import annotations

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Rwkv4

# Long enough for matrix x matrix products to pay, short enough that activations stay small: memory does not grow with
# the length of a text.
CHUNK = 256


class Engine:
    """Runs a placed model over token ids without gradients."""

    def __init__(self, model: Rwkv4, chunk: int = CHUNK):
        self.model = model
        self.chunk = chunk

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first token of `batch` sequences."""
        return State.initial(self.model.config, batch)

    @torch.no_grad()
    def forward(self, tokens: Tensor, state: State | None = None, full_output: bool = False) -> tuple[Tensor, State]:
        """Reads tokens, continuing from `state`, which is not modified.

        Args:
            tokens: (B, T) int64.
            state: of the same B sequences and the same model; None begins new texts.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits float32 (B, V), or (B, T, V) with `full_output`; and the state after the last token.

        Raises:
            RequestError: no tokens, an id outside the vocabulary, a foreign state.
        """
        self._check(tokens)
        state = state or self.initial_state(len(tokens))
        state.check(self.model.config, self.model.fingerprint, len(tokens))
        outputs = []
        for chunk in tokens.split(self.chunk, dim=1):
            logits, state = self.model(chunk, state, full_output)
            outputs.append(logits)
        return (torch.cat(outputs, dim=1) if full_output else outputs[-1]), state

    def _check(self, tokens: Tensor) -> None:
        n_vocab = self.model.config.n_vocab
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise RequestError(f"tokens: got shape {tuple(tokens.shape)}, expected (B, T) with at least one token each")
        if tokens.dtype != torch.int64:
            raise RequestError(f"tokens: got {tokens.dtype}, expected integer ids (int64)")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= n_vocab:
            raise RequestError(
                f"token id {low if low < 0 else high} is outside this model's vocabulary of {n_vocab};"
                " is this another model's tokenizer?"
            )

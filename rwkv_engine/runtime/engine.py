"""When to read many tokens at once and when one: prefill in chunks, then decode."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model
from rwkv_engine.runtime.decoder import Decoder, recordable

# Long enough for matrix x matrix products to pay, short enough that activations stay small: memory does not grow with
# the length of a text.
CHUNK = 256
_making_decoder = threading.Lock()  # two threads would make two, each with a pool of its own


class Engine:
    """Runs a placed model over token ids without gradients.

    Attributes:
        chunk: tokens read at once at most, or one more.
        pooled: whether single tokens are read by `decoder`, as on a GPU that can record its steps. Elsewhere copying
            states in and out would gain nothing.
    """

    def __init__(self, model: Model, chunk: int = CHUNK):
        self.model = model
        self.chunk = chunk
        self.pooled = recordable(model) is not None
        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        """Decode over a pool of states that only this engine knows; made when it is first needed, and only once."""
        with _making_decoder:
            if self._decoder is None:
                self._decoder = Decoder(self.model)
            return self._decoder

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first token of `batch` sequences."""
        return State.initial(self.model.config, batch).to(self.model.device_map.home)

    @torch.inference_mode(False)  # what is made here outlives the call: pools and states, which others change in place
    @torch.no_grad()
    def forward(self, tokens: Tensor, state: State | None = None, full_output: bool = False) -> tuple[Tensor, State]:
        """Reads tokens, continuing from `state`, which is not modified.

        Args:
            tokens: (B, T) int64, on any device.
            state: of the same B sequences and the same model, on any device; None begins new texts.
            full_output: logits for every token instead of the last one.

        Returns:
            Logits float32 (B, V), or (B, T, V) with `full_output`; and the state after the last token. Both are on the
            device of the model's head.

        Raises:
            RequestError: no tokens, an id outside the vocabulary, a foreign state.
        """
        check_tokens(tokens, self.model.config.n_vocab)
        state = state or self.initial_state(len(tokens))
        state.check(self.model.config, self.model.fingerprint, len(tokens))
        if self.pooled and self.model.are_few(tokens):
            logits, state = self.decoder.forward(tokens.squeeze(1), state)
            return (logits.unsqueeze(1) if full_output else logits), state
        outputs = []
        for chunk in tokens.split(self._chunks(tokens.shape[1]), dim=1):
            logits, state = self.model(chunk, state, full_output)
            outputs.append(logits)
        return (torch.cat(outputs, dim=1) if full_output else outputs[-1]), state

    def _chunks(self, n: int) -> list[int]:
        """Sizes that sum to n. One token alone goes another way through the model, so none is left over."""
        whole, rest = divmod(n, self.chunk)
        sizes = [self.chunk] * whole
        if rest == 1 and sizes:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes


def check_tokens(tokens: Tensor, n_vocab: int) -> None:
    """Refuses what are no ids (B, T) of a vocabulary.

    Raises:
        RequestError: with what was found.
    """
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

"""Runs a model over token ids: prefill in chunks for many tokens, a decoding step for one."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.runtime.decoder import Decoder, recordable

# Long enough for efficient matrix-matrix products, short enough to keep activations small: the memory of a prefill does
# not grow with the length of its text.
CHUNK = 256
# A GPU's products need more rows, and each chunk there copies all matrices from tiles into rows.
GPU_CHUNK = 2048
_making_decoder = threading.Lock()  # two threads would make two, each with a pool of its own


class Engine:
    """Runs a placed model over token ids, without gradients.

    Attributes:
        model: the model.
        chunk: the number of tokens that a prefill processes at once; the last chunk may have one more.
        pooled: whether `decoder` processes single tokens. This is so where decoding steps are CUDA graphs; elsewhere
            the pool would only add copies of states.
    """

    def __init__(self, model: Model, chunk: int | None = None):
        """`chunk`: None chooses by the model's devices."""
        self.model = model
        self.chunk = chunk or chunk_for(model.device_map.devices)
        self.pooled = recordable(model) is not None
        self._decoder: Decoder | None = None

    @property
    def decoder(self) -> Decoder:
        """The decoder of this engine, with a pool of its own, created at its first use."""
        with _making_decoder:
            if self._decoder is None:
                self._decoder = Decoder(self.model)
            return self._decoder

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first token of `batch` sequences, on the device of the model's head."""
        return State.initial(self.model.config, batch).to(self.model.device_map.home)

    @torch.inference_mode(False)  # pools and states outlive the call, and are later modified in place
    @torch.no_grad()
    def forward(self, tokens: Tensor, state: State | None = None, full_output: bool = False) -> tuple[Tensor, State]:
        """Runs the model over T tokens of each of B sequences, continuing from `state`.

        Args:
            tokens: (B, T) int64, T >= 1, on any device.
            state: the state of the same B sequences, on any device; not modified. None starts new sequences.
            full_output: whether to return logits for every token instead of the last one only.

        Returns:
            Logits float32 (B, V), or (B, T, V) with `full_output`; and the state after the last token. Both are on the
            device of the model's head.

        Raises:
            RequestError: there are no tokens, an id is outside the vocabulary, or the state belongs to another model or
                batch size.
        """
        check_tokens(tokens, self.model.config.n_vocab)
        state = state or self.initial_state(len(tokens))
        state.check(self.model.config, self.model.fingerprint, len(tokens))
        if self.pooled and tokens.shape[1] == 1:
            logits, state = self._decode(tokens.squeeze(1), state)
            return (logits.unsqueeze(1) if full_output else logits), state
        outputs = []
        for chunk in tokens.split(self._chunks(tokens.shape[1]), dim=1):
            logits, state = self.model(chunk, state, full_output)
            outputs.append(logits)
        return (torch.cat(outputs, dim=1) if full_output else outputs[-1]), state

    def _decode(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token (B,) of each sequence, in groups that the decoder takes: a prefill would copy all matrices."""
        groups = [slice(begin, begin + MOST_ROWS) for begin in range(0, len(tokens), MOST_ROWS)]
        logits, states = zip(*(self.decoder.forward(tokens[rows], state.rows(rows)) for rows in groups), strict=True)
        return (torch.cat(logits), State.join(states)) if len(groups) > 1 else (logits[0], states[0])

    def _chunks(self, n: int) -> list[int]:
        """The sizes of the chunks of a prefill of n tokens.

        A remainder of one token is added to the last chunk, because single tokens are processed by a decoding step,
        whose results can differ in the last bits.
        """
        whole, rest = divmod(n, self.chunk)
        sizes = [self.chunk] * whole
        if rest == 1 and sizes:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes


def chunk_for(devices: Iterable[torch.device]) -> int:
    """How many tokens a prefill processes at once where the layers are on these devices."""
    return GPU_CHUNK if any(device.type == "cuda" for device in devices) else CHUNK


def check_tokens(tokens: Tensor, n_vocab: int) -> None:
    """Refuses tokens that are not ids (B, T) of a vocabulary.

    Raises:
        RequestError: the message says what was found.
    """
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise RequestError(f"tokens: got shape {tuple(tokens.shape)}, expected (B, T) with at least one token each")
    if tokens.dtype != torch.int64:
        raise RequestError(f"tokens: got {tokens.dtype}, expected integer ids (int64)")
    low, high = (int(extreme) for extreme in tokens.aminmax())
    if low < 0 or high >= n_vocab:
        raise RequestError(
            f"token id {low if low < 0 else high} is outside this model's vocabulary of {n_vocab};"
            " is this another model's tokenizer?"
        )


def as_ids(tokens: Sequence[int] | Tensor) -> Tensor:
    """Token ids (T,) or (B, T) as an int64 tensor.

    Raises:
        RequestError: they are none.
    """
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"tokens: expected a list of integer ids, got {type(tokens).__name__}: {error}") from error
    if ids.numel() == 0 or ids.ndim not in (1, 2):
        raise RequestError(f"tokens: expected at least one id, as (T,) or (B, T); got shape {tuple(ids.shape)}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise RequestError(f"tokens: expected integer ids, got {ids.dtype}")
    if ids.is_meta or ids.layout != torch.strided:
        raise RequestError(f"tokens: expected a dense tensor of ids, got {ids.layout} on {ids.device}")
    return ids.long()

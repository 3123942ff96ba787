"""Decoding steps for one batch size, with inputs and outputs at fixed addresses, as CUDA graphs need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_engine.models import Model
from rwkv_engine.ops.draw_tokens import draw_tokens
from rwkv_engine.ops.embed_norm import Counted
from rwkv_engine.ops.most_likely import most_likely
from rwkv_engine.runtime.graph import Capture
from rwkv_engine.runtime.pool import StatePool
from rwkv_engine.runtime.transfer import copy_to, host_buffer, wait_for

# Makes the masks of n texts, (n, ceil(V / 32)) int32, or None where all tokens may follow in all of them.
Masks = Callable[[], NDArray[np.int32] | None]


class RowSampling(NamedTuple):
    """How to sample the next token of one sequence; see `ops.draw_tokens`.

    Attributes:
        seed, sample: integers of 64 bits, signed, see `ops.philox_uniform`.
        presence, frequency, decay: the penalties, which only `AdjustedBucket` reads.
    """

    seed: int
    sample: int
    top_k: int
    temperature: float
    top_p: float
    min_p: float
    presence: float = 0.0
    frequency: float = 0.0
    decay: float = 1.0


class Bucket:
    """One decoding step for one batch size n, with inputs and outputs at fixed addresses, as a CUDA graph needs.

    Attributes:
        tokens: (n,) int64 on the first layer's device, the tokens to process.
        logits: (n, V) float32 on the head's device; a graph writes them to the same address each time.
        positions: (n,) int64 on the head's device, the number of tokens that each sequence has processed.
        advance: processes the tokens in the slots that were loaded.
    """

    def __init__(self, model: Model, pool: StatePool, size: int, capture: Capture):
        first, home = model.device_map.devices[0], model.device_map.home
        self._model, self._pool = model, pool
        # Tokens and slots are rows of one tensor, so that one copy sets them. Capturing runs the step, which must not
        # change the states of sequences, so all rows use the dummy slot.
        self._inputs = torch.tensor([[0] * size, [pool.dummy] * size], dtype=torch.int64, device=first)
        self.tokens, self._slots = self._inputs
        self.positions = torch.zeros(size, dtype=torch.int64, device=home)
        self.advance = capture(self._advance)

    def load(self, tokens: Tensor, slots: Sequence[int]) -> None:
        """Sets the tokens and slots of the next step; padding rows process token 0 in the dummy slot."""
        n, size = len(slots), len(self.tokens)
        host = torch.tensor([[0] * size, [*slots, *[self._pool.dummy] * (size - n)]], dtype=torch.int64)
        is_here = tokens.device.type == "cpu"
        if is_here:
            host[0, :n].copy_(tokens)
        copy_to(self._inputs, host)
        if not is_here:
            self.tokens[:n].copy_(tokens)

    @torch.no_grad()
    def _advance(self) -> None:
        is_one_device = self.positions.device == self.tokens.device
        counted = Counted(self._pool.positions, self._slots, self.positions) if is_one_device else None
        self.logits = self._model.step(self.tokens, self._pool.layers, self._slots, counted=counted)
        if counted is None:
            self.positions.copy_(self._pool.advance(self._slots.to(self.positions.device)))


class SampledBucket:
    """A decoding step for one batch size n, the sampling behind it, and the copies from and to the host.

    All that is one captured function: for a token the host writes some numbers, launches one CUDA graph, waits, and
    reads the ids.

    Attributes:
        logits: (n, V) float32; the captured step writes them to the same address each time.
    """

    def __init__(self, model: Model, pool: StatePool, size: int, capture: Capture, is_greedy: bool = False):
        """`is_greedy`: whether every row takes the most likely token, so that what rows sample with is not read."""
        home = model.device_map.home
        self._model, self._pool, self._is_greedy = model, pool, is_greedy
        self._host = host_buffer((11, size), home)  # five rows of integers, and six of float64
        integers = self._host.numpy()
        self._integers, self._floats = integers[:5], integers[5:].view(np.float64)
        self._pad(slice(size))  # capturing runs the step, which must not change the states of sequences
        self._inputs = torch.empty_like(self._host, device=home)
        self._positions = torch.zeros(size, dtype=torch.int64, device=home)
        self._ids = host_buffer((size,), home)
        self.logits: Tensor
        self._record(capture)

    def _record(self, capture: Capture) -> None:
        self._recorded = capture(self._work)

    def run(
        self, tokens: Sequence[int], slots: Sequence[int], rows: Sequence[RowSampling], masks: Masks | None = None
    ) -> list[int]:
        """Processes a token in each slot, and returns the ids of the next ones, -1 where none can be sampled.

        `masks` is for `AdjustedBucket` only.
        """
        self._load(tokens, slots, rows)
        self._recorded()
        return self._read(len(slots))

    def _load(self, tokens: Sequence[int], slots: Sequence[int], rows: Sequence[RowSampling]) -> None:
        n = len(slots)
        columns = list(zip(*rows, strict=True))
        self._integers[:, :n] = [tokens, slots, *columns[:3]]
        self._floats[:, :n] = columns[3:]
        self._pad(slice(n, None))

    def _read(self, n: int) -> list[int]:
        wait_for(self._inputs.device)  # before this no byte of the host's buffers may change
        return self._ids.numpy()[:n].tolist()

    def _pad(self, rows: slice) -> None:
        """Lets rows process token 0 in the dummy slot, and take the most likely token."""
        self._integers[:, rows] = np.array([0, self._pool.dummy, 0, 0, 0])[:, None]
        self._floats[:, rows] = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 1.0])[:, None]

    def _work(self) -> None:
        self._step()
        self._draw()

    @torch.no_grad()
    def _step(self) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        tokens, slots = self._inputs[:2]
        counted = Counted(self._pool.positions, slots, self._positions)
        self.logits = self._model.step(tokens, self._pool.layers, slots, counted=counted)

    @torch.no_grad()
    def _draw(self) -> None:
        _, slots, seeds, samples, top_k = self._inputs[:5]
        floats = self._inputs[5:].view(torch.float64)
        self._ids.copy_(self._sampled((seeds, samples, self._positions), slots, top_k, floats), non_blocking=True)

    def _sampled(self, keys: tuple[Tensor, Tensor, Tensor], slots: Tensor, top_k: Tensor, floats: Tensor) -> Tensor:
        """The ids (n,) of the next tokens, from the step's logits."""
        if self._is_greedy:
            return most_likely(self.logits)
        temperatures, top_p, min_p = floats[:3]
        return draw_tokens(self.logits, temperatures, top_k, top_p, min_p, keys)

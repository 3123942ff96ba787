"""Decode over a pool of states: one token of a few sequences at a time, recorded where that can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model
from rwkv_engine.ops.linear import MOST_ROWS
from rwkv_engine.runtime.graph import Capture, cuda_graph, eager
from rwkv_engine.runtime.pool import StatePool
from rwkv_engine.runtime.turns import Turns

# A batch is filled up to one of these sizes, each recorded once, whatever is drawn from its logits.
BUCKETS = (1, 2, 4, 8, MOST_ROWS)

# (logits (B, V), positions (B,), seeds (B,), samples (B,)) -> ids (B,), without asking the host for anything; negative
# where there is nothing to draw from. Equal ones draw alike.
Draw = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Decoder:
    """Reads one token of up to 16 sequences at a time, whose states are in slots of `pool`.

    Any number of threads may call its methods: calls take turns, since they share one set of buffers.
    """

    def __init__(self, model: Model, slots: int = BUCKETS[-1], capture: Capture | None = None):
        """`capture`: how steps are recorded; by default as a CUDA graph where the model is on one CUDA device."""
        self.pool = StatePool(model, slots)
        self._model = model
        self._capture = capture or _capture_for(model)
        self._buckets: dict[int, Bucket] = {}
        self._turns = Turns({*model.device_map.devices, model.device_map.home})

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """One token of each sequence of a state, which is not modified: tokens (B,) -> logits (B, V), the new state."""
        with self._turns.take():
            slots = self.pool.take(state)
            try:
                return self._step(tokens, slots), self.pool.read(slots)
            finally:
                self.pool.free(slots)

    def step(self, tokens: Tensor, slots: Sequence[int]) -> Tensor:
        """Reads one token in each slot.

        Args:
            tokens: (B,) int64, B from 1 to 16, each in [0, V).
            slots: B of the pool, no two the same.

        Returns:
            Logits (B, V) float32 on the head's device.

        Raises:
            RequestError: B is not from 1 to 16, or slots of the pool are not all different.
        """
        with self._turns.take():
            return self._step(tokens, slots)

    @torch.no_grad()
    def run(
        self,
        tokens: Tensor,
        slots: Sequence[int],
        n: int,
        draw: Draw,
        seeds: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> Tensor:
        """Reads one token in each slot, draws the next ones, reads these, `n` times over, without waiting for any.

        Args:
            tokens, slots: as for `step`.
            n: tokens to draw for each sequence, at least 1; the last one is not read.
            draw: makes logits ids, behind the recorded step.
            seeds, samples: (B,) int64, given to `draw`; None: zeros.

        Returns:
            Ids (B, n), on the first layer's device, negative from where there was nothing to draw from.

        Raises:
            RequestError: as for `step`.
        """
        home, rows = self._model.device_map.home, len(slots)
        zeros = torch.zeros(rows, dtype=torch.int64, device=home)
        keys = [zeros if given is None else given.to(home) for given in (seeds, samples)]
        with self._turns.take():
            bucket = self._loaded(tokens, slots)
            drawn = []
            for _ in range(n):
                bucket.advance()
                bucket.tokens[:rows].copy_(draw(bucket.logits[:rows], bucket.positions[:rows], *keys))
                drawn.append(bucket.tokens[:rows].clone())
            return torch.stack(drawn, dim=1)

    def _step(self, tokens: Tensor, slots: Sequence[int]) -> Tensor:
        bucket = self._loaded(tokens, slots)
        bucket.advance()
        return bucket.logits[: len(slots)].clone()

    @torch.no_grad()
    def _loaded(self, tokens: Tensor, slots: Sequence[int]) -> Bucket:
        if not 1 <= len(slots) <= BUCKETS[-1] or tokens.shape != (len(slots),):
            raise RequestError(
                f"got {tuple(tokens.shape)} tokens for {len(slots)} slots, expected 1 to {BUCKETS[-1]}, one for each"
            )
        if len(set(slots)) < len(slots) or not all(0 <= slot < self.pool.dummy for slot in slots):
            raise RequestError(f"slots: got {list(slots)}, expected different ones of {self.pool.dummy}")
        size = next(size for size in BUCKETS if size >= len(slots))
        if size not in self._buckets:
            self._buckets[size] = Bucket(self._model, self.pool, size, self._capture)
        bucket = self._buckets[size]
        bucket.load(tokens, slots)
        return bucket


class Bucket:
    """One step of a batch of one size, on tensors that stay where they are, which is all that a recording knows.

    Attributes:
        tokens: (n,) int64 on the first layer's device, to be read; a negative one, which stands for no token, reads
            token 0.
        logits: (n, V) float32 on the head's device.
        positions: (n,) int64 on the head's device, tokens read in each sequence so far.
        advance: reads the tokens, in the slots that were loaded.
    """

    def __init__(self, model: Model, pool: StatePool, size: int, capture: Capture):
        first, home = model.device_map.devices[0], model.device_map.home
        self._model, self._pool = model, pool
        self.tokens = torch.zeros(size, dtype=torch.int64, device=first)
        self.logits = torch.zeros(size, model.config.n_vocab, dtype=torch.float32, device=home)
        self.positions = torch.zeros(size, dtype=torch.int64, device=home)
        # All on the dummy slot for now: recording runs the step, and must leave the others as they are.
        self._slots = torch.full((size,), pool.dummy, dtype=torch.int64, device=first)
        self.advance = capture(self._advance)

    def load(self, tokens: Tensor, slots: Sequence[int]) -> None:
        """What comes next; rows that fill up the batch read token 0 in the dummy slot."""
        n = len(slots)
        self.tokens.zero_()[:n].copy_(tokens)
        self._slots.fill_(self._pool.dummy)[:n].copy_(self._pool.index(tuple(slots), self._slots.device))

    @torch.no_grad()
    def _advance(self) -> None:
        # What a draw could not make an id of would be an address outside the embedding.
        self.logits.copy_(self._model.step(self.tokens.clamp(min=0), self._pool.layers, self._slots))
        self.positions.copy_(self._pool.advance(self._slots.to(self.logits.device)))


def recordable(model: Model) -> torch.device | None:
    """The one CUDA device that all of a model is on; several devices, or the CPU, cannot be recorded."""
    devices = {*model.device_map.devices, model.device_map.home}
    return model.device_map.home if len(devices) == 1 and model.device_map.home.type == "cuda" else None


def _capture_for(model: Model) -> Capture:
    device = recordable(model)
    return cuda_graph(device) if device else eager

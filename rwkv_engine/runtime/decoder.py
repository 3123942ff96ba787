"""Decoding over a pool of states: one token of several sequences per step, as a CUDA graph where possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model
from rwkv_engine.models.turns import Turns
from rwkv_engine.ops.linear import MOST_ROWS, MOST_ROWS_ON_CPU
from rwkv_engine.runtime.adjusted_bucket import AdjustedBucket
from rwkv_engine.runtime.adjustments import Adjustments
from rwkv_engine.runtime.bucket import Bucket, Masks, RowSampling, SampledBucket
from rwkv_engine.runtime.graph import Capture, cuda_graph, eager
from rwkv_engine.runtime.pool import StatePool

# A batch is padded to one of these sizes. Each size is captured at most five times, whatever the sampling parameters:
# the step alone, with greedy or any other sampling behind it, and a step and the sampling from adjusted logits.
BUCKETS = (1, 2, 4, 8, MOST_ROWS)

# A sampling function: (logits (B, V), positions (B,), seeds (B,), samples (B,)) -> ids (B,) int64, negative where no
# token can be sampled. It must not synchronise with the host.
Draw = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Decoder:
    """Decodes up to `most_rows` sequences at a time, one token per step; their states are in slots of `pool`.

    Its methods can be called from several threads. They share one set of buffers, so one call runs after the other.
    """

    def __init__(self, model: Model, slots: int = BUCKETS[-1], capture: Capture | None = None):
        """Creates the pool.

        Args:
            model: a placed model.
            slots: the number of sequences in the pool.
            capture: how steps are captured; by default as CUDA graphs if the whole model is on one CUDA device.
        """
        self.pool = StatePool(model, slots)
        self._model = model
        self._capture = capture or _capture_for(model)
        self._buckets: dict[int, Bucket] = {}
        self._sampled: dict[tuple[int, bool, bool], SampledBucket] = {}  # by size, is_greedy, and whether adjusted
        own = Turns({*model.device_map.devices, model.device_map.home})
        self._turns = model.streaming.turns if model.streaming else own  # its buffers are those of all decoders

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Processes one token of each of B sequences, B from 1 to 16.

        Args:
            tokens: (B,) int64, each in [0, V).
            state: of the same B sequences; not modified.

        Returns:
            Logits (B, V) float32 and the new state, on the head's device.

        Raises:
            RequestError: the pool has too few free slots, or the state belongs to another model.
        """
        with self._turns.take():
            slots = self.pool.take(state)
            try:
                return self.step(tokens, slots), self.pool.read(slots)
            finally:
                self.pool.free(slots)

    @cached_property
    def chains(self) -> bool:
        """Whether `step` with `before` reads the weights once for all tokens."""
        return chains(self._model) and not self.records

    @cached_property
    def adjustments(self) -> Adjustments:
        """What `sample` with `masks` adjusts logits by; the caller sets the rows of its slots."""
        return Adjustments(self.pool.dummy + 1, self._model.config.n_vocab, self._model.device_map.home)

    @property
    def records(self) -> bool:
        """Whether steps are captured as CUDA graphs, so that `sample` is the fastest way to the next tokens."""
        return self._capture is not eager

    @cached_property
    def most_rows(self) -> int:
        """The number of tokens that `step` can process at a time."""
        return MOST_ROWS if self.records else most_rows(self._model)

    @torch.no_grad()
    def step(
        self,
        tokens: Tensor,
        slots: Sequence[int],
        before: Sequence[int] | None = None,
        wanted: Sequence[int] | None = None,
    ) -> Tensor:
        """Processes one token in each slot.

        Args:
            tokens: (B,) int64, B from 1 to `most_rows`, each in [0, V).
            slots: B slots of the pool, which are different without `before`.
            before: the slot whose state each token follows, which may be the slot of an earlier token, so that several
                tokens of one sequence are processed at a time; None means its own. Not for CUDA graphs.
            wanted: the tokens after which logits are computed, with `before` only; None for all of them.

        Returns:
            Logits (B, V) float32 on the head's device, or (W, V) with `wanted`.

        Raises:
            RequestError: B is not from 1 to `most_rows`, or `slots` are not such slots of the pool.
        """
        with self._turns.take():
            if self._capture is eager:  # which needs neither fixed addresses nor padding
                self._check(tokens, slots, self.most_rows, may_repeat=before is not None)
                home, first = self._model.device_map.home, self._model.device_map.devices[0]

                def index(device: torch.device) -> tuple[Tensor, Tensor | None]:
                    origins = None if before is None else self.pool.index(tuple(before), device)
                    return self.pool.index(tuple(slots), device), origins

                rows = None if wanted is None else torch.tensor(wanted)
                logits = self._model.step(tokens, self.pool.layers, *index(first), rows)
                self.pool.advance(*index(home))
                return logits
            assert before is None
            assert wanted is None
            bucket = self._loaded(tokens, slots)
            bucket.advance()
            return bucket.logits[: len(slots)].clone()

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
        """Alternately processes one token in each slot and samples the next, `n` times, without synchronising.

        Args:
            tokens, slots: as for `step`.
            n: the number of tokens to sample for each sequence, at least 1; the last one is not processed.
            draw: samples ids from logits; it runs after the captured step.
            seeds, samples: (B,) int64, passed to `draw`; None means zeros.

        Returns:
            Ids (B, n) int64 on the first layer's device; negative from the first token on that could not be sampled.

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
                ids = draw(bucket.logits[:rows], bucket.positions[:rows], *keys).to(bucket.tokens.device)
                # A negative id, where no token could be sampled, would index outside the embedding.
                torch.clamp(ids, min=0, out=bucket.tokens[:rows])
                drawn.append(ids)
            return torch.stack(drawn, dim=1)

    @torch.no_grad()
    def sample(
        self,
        tokens: Sequence[int],
        slots: Sequence[int],
        rows: Sequence[RowSampling],
        masks: Masks | None = None,
    ) -> tuple[Tensor, list[int]]:
        """Processes one token in each slot and samples the next, in one captured graph, or in two with `masks`.

        Args:
            tokens: B ids, B from 1 to 16, each in [0, V).
            slots: B different slots of the pool.
            rows: how to sample the B next tokens.
            masks: makes the masks of allowed tokens, while the device does the step; logits are then adjusted by what
                `adjustments` has for the slots, and the ids become a part of it. None for neither.

        Returns:
            Logits (B, V) float32 on the head's device, which a later call overwrites; and B ids, -1 where no token can
            be sampled, and `NONE_ALLOWED` where a mask has none.

        Raises:
            RequestError: as for `step`.
        """
        self._check(tokens, slots, BUCKETS[-1])
        with self._turns.take():
            is_greedy = masks is None and all(row.temperature == 0 for row in rows)
            key = size_for(slots), is_greedy, masks is not None
            if key not in self._sampled:
                of = self._model, self.pool, key[0], self._capture
                made = AdjustedBucket(*of, self.adjustments) if masks else SampledBucket(*of, is_greedy)
                self._sampled[key] = made
            ids = self._sampled[key].run(tokens, slots, rows, masks)
            return self._sampled[key].logits[: len(slots)], ids

    @torch.no_grad()
    def _loaded(self, tokens: Tensor, slots: Sequence[int]) -> Bucket:
        self._check(tokens, slots, BUCKETS[-1])
        size = size_for(slots)
        if size not in self._buckets:
            self._buckets[size] = Bucket(self._model, self.pool, size, self._capture)
        bucket = self._buckets[size]
        bucket.load(tokens, slots)
        return bucket

    def _check(self, tokens: Tensor | Sequence[int], slots: Sequence[int], most: int, may_repeat: bool = False) -> None:
        shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else (len(tokens),)
        if not 1 <= len(slots) <= most or shape != (len(slots),):
            raise RequestError(f"got {shape} tokens for {len(slots)} slots, expected 1 to {most}, one for each")
        if (not may_repeat and len(set(slots)) < len(slots)) or not all(0 <= slot < self.pool.dummy for slot in slots):
            raise RequestError(f"slots: got {list(slots)}, expected different slots below {self.pool.dummy}")


def size_for(slots: Sequence[int]) -> int:
    """The size of the bucket for 1 to 16 slots."""
    return next(size for size in BUCKETS if size >= len(slots))


def chains(model: Model) -> bool:
    """Whether steps read the weights once for several tokens of one sequence."""
    is_packed = all(layer.is_packed for layer in model.layers)
    return model.block.chains and is_packed and all(device.type == "cpu" for device in model.device_map.devices)


def most_rows(model: Model) -> int:
    """The number of tokens that share a step of a model."""
    return MOST_ROWS_ON_CPU if chains(model) and model.device_map.home.type == "cpu" else MOST_ROWS


def recordable(model: Model) -> torch.device | None:
    """The CUDA device of a model whose steps can be captured as a CUDA graph; None if it is not on one such device."""
    devices = {*model.device_map.devices, model.device_map.home}
    return model.device_map.home if len(devices) == 1 and model.device_map.home.type == "cuda" else None


def _capture_for(model: Model) -> Capture:
    device = recordable(model)
    return cuda_graph(device) if device else eager

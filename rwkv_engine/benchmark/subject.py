"""What is measured: a model that reads tokens, ours or another program's."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rwkv_engine._version import __version__
from rwkv_engine.core import State
from rwkv_engine.evaluation import write
from rwkv_engine.generation import SamplingParams
from rwkv_engine.generation.draw import Draw
from rwkv_engine.native.cpu_kernels import status as cpu_kernels
from rwkv_engine.native.cuda_kernels import status as cuda_kernels
from rwkv_engine.pipeline import RWKV
from rwkv_engine.progress import Progress
from rwkv_engine.runtime import Decoder
from rwkv_engine.runtime.decoder import BUCKETS
from rwkv_engine.verification.activations import watched

GREEDY = Draw.of(SamplingParams(temperature=0))


class Subject(Protocol):
    """A model that reads tokens.

    Attributes:
        about: version, and what else there is to know of it.
        device: contains "cuda" if a GPU is at work.
    """

    about: dict[str, str]
    device: str

    def prefill(self, ids: list[int]) -> None:
        """Reads a prompt at once, from the beginning; there are logits for the next token afterwards."""

    def decode(self, ids: list[int]) -> None:
        """Reads one token after the other, going on from the last call; logits after each."""


class Ours:
    """This engine, through the calls that programs make."""

    def __init__(self, path: Path, strategy: str, progress: Progress | None = None):
        """Loads the model; arguments and errors are those of `RWKV.from_pretrained`."""
        self.model = RWKV.from_pretrained(path, strategy, progress=progress)
        layout = self.model.engine.model.device_map
        self.device = "cuda" if any(d.type == "cuda" for d in (*layout.devices, layout.home)) else "cpu"
        kernels = cuda_kernels() if self.device == "cuda" else cpu_kernels()
        self.about = {"version": __version__, "kernels": f"{kernels.kind} {kernels.level or ''}".strip()}
        self._state: State | None = None
        self._kept: dict[int, State] = {}

    def prefill(self, ids: list[int]) -> None:
        """See `Subject`."""
        self.model.forward(ids)

    def decode(self, ids: list[int]) -> None:
        """See `Subject`."""
        for token in ids:
            _, self._state = self.model.forward([token], self._state)

    def go_to(self, ids: list[int], positions: list[int], progress: Progress) -> None:
        """Reads a text made of `ids` over and over, and keeps the states at these positions, lowest first, for `at`."""
        state, read = None, 0
        for position in positions:
            while read < position:
                n = min(len(ids), position - read)
                _, state = self.model.forward(ids[:n], state)
                read += n
                progress(read, positions[-1])
            assert state is not None
            self._kept[position] = state

    def at(self, position: int) -> None:
        """Goes on from a position of `go_to`."""
        self._state = self._kept[position]

    @cached_property
    def _decoder(self) -> Decoder:
        engine = self.model.engine
        return engine.decoder if engine.pooled else Decoder(engine.model)

    def take(self, ids: list[int]) -> list[int]:
        """Slots for as many new sequences as there are ids; empty where they are more than the steps read together."""
        if len(ids) > BUCKETS[-1]:
            return []
        return self._decoder.pool.take(State.initial(self.model.config, len(ids)))

    def step(self, ids: list[int], slots: list[int], steps: int) -> None:
        """Reads the ids, one for each sequence, and what each writes after them, `steps` times, as a server would."""
        if slots:
            self._decoder.run(torch.tensor(ids), slots, steps, GREEDY)
            return
        tokens, state = torch.tensor(ids).unsqueeze(1), None
        for _ in range(steps):
            logits, state = self.model.engine.forward(tokens, state)
            tokens = logits.argmax(-1, keepdim=True)

    def free(self, slots: list[int]) -> None:
        """Gives slots back."""
        if slots:
            self._decoder.pool.free(slots)

    def zeros(self, ids: list[int]) -> list[float]:
        """For each layer the share of channel mixing's squared relu that is zero over these ids and not read.

        Nothing is skipped without kernels, that is where matrices are not arranged for them.
        """
        model = self.model.engine.model
        with watched(model) as seen:
            self.model.forward(ids)
        skipping = [block.is_packed for block in model.layers]
        return [sum(z) / len(z) if skips else 0.0 for z, skips in zip(seen.zeros, skipping, strict=True)]

    def write(self, n: int, progress: Progress) -> list[int]:
        """`n` ids that the model itself writes at temperature 1."""
        return write(self.model, n, seed=1, progress=progress)[1:]


def random_ids(n_vocab: int, n: int) -> list[int]:
    """The same at every call."""
    ids: Tensor = torch.randint(n_vocab, (n,), generator=torch.Generator().manual_seed(1))
    return ids.tolist()

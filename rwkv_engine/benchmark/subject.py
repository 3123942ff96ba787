"""What is measured: a model that reads tokens, here our own; `verification.baselines` has those of other programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rwkv_engine._version import __version__
from rwkv_engine.core import State
from rwkv_engine.evaluation import write
from rwkv_engine.generation import Sampler, SamplingParams, TokenStream
from rwkv_engine.generation.draw import Draw
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import Scheduler, scheduler_of
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
        about: its version, and its kernels where it has a choice.
        device: contains "cuda" if the model uses a GPU.
    """

    about: dict[str, str]
    device: str

    def prefill(self, ids: list[int]) -> None:
        """Reads a prompt at once from an empty state and computes the logits of the next token."""

    def decode(self, ids: list[int]) -> None:
        """Reads one token after the other, continuing from the last call, with logits after each."""


class Ours:
    """Our engine, through the same calls that other programs would make."""

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

    @property
    def scheduler(self) -> Scheduler:
        """What runs many texts."""
        return scheduler_of(self.model.engine)

    def generate(
        self, prompt: Sequence[int], tokens: int, seed: int, temperature: float, top_p: float
    ) -> Iterator[int]:
        """Continues a prompt alone, as `RWKV.generate` does."""
        params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed)
        return TokenStream(self.model.engine, prompt, Sampler(params), tokens)

    def go_to(self, ids: list[int], positions: list[int], progress: Progress) -> None:
        """Reads `ids` over and over, and keeps the states at these positions, lowest first, for `at`."""
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
        """Makes the next `decode` continue from a position of `go_to`."""
        self._state = self._kept[position]

    @cached_property
    def _decoder(self) -> Decoder:
        engine = self.model.engine
        return engine.decoder if engine.pooled else Decoder(engine.model)

    def take(self, ids: list[int]) -> list[int]:
        """Slots for one new sequence for each id; empty if there are more than a decode step can take together."""
        if len(ids) > BUCKETS[-1]:
            return []
        return self._decoder.pool.take(State.initial(self.model.config, len(ids)))

    def step(self, ids: list[int], slots: list[int], steps: int) -> None:
        """Decodes `steps` greedy tokens of each sequence, the first after its id, as a server would."""
        if slots:
            self._decoder.run(torch.tensor(ids), slots, steps, GREEDY)
            return
        tokens, state = torch.tensor(ids).unsqueeze(1), None
        for _ in range(steps):
            logits, state = self.model.engine.forward(tokens, state)
            tokens = logits.argmax(-1, keepdim=True)

    def free(self, slots: list[int]) -> None:
        """Returns slots to the pool."""
        if slots:
            self._decoder.pool.free(slots)

    def begin(self, ids: list[int]) -> list[Request]:
        """Texts of the scheduler, one after each id, which have their first token and wait to be asked for more."""
        scheduler, sampler = scheduler_of(self.model.engine), Sampler(SamplingParams(temperature=0))
        texts = [Request([token], sampler, 2**62) for token in ids]
        for text in texts:
            text.wanted = 0
            scheduler.add(text)
        self.advance(texts, 1)
        return texts

    def advance(self, texts: list[Request], steps: int) -> None:
        """Generates `steps` tokens of each text, as `generate_many` does."""
        for text in texts:
            text.wanted += steps
        scheduler_of(self.model.engine).wait(lambda: all(text.is_paused or text.error for text in texts))
        if error := next((text.error for text in texts if text.error), None):
            raise error

    def end(self, texts: list[Request]) -> None:
        """Ends texts."""
        for text in texts:
            scheduler_of(self.model.engine).abort(text)
        scheduler_of(self.model.engine).wait(lambda: all(text.finish_reason for text in texts))

    def zeros(self, ids: list[int]) -> list[float]:
        """For each layer the share of channel mixing's squared ReLU that is zero over these ids and is skipped.

        Matrices that are not arranged for our kernels, because there are none, are read as a whole.
        """
        model = self.model.engine.model
        with watched(model) as seen:
            self.model.forward(ids)
        skipping = [block.is_packed for block in model.layers]
        return [sum(z) / len(z) if skips else 0.0 for z, skips in zip(seen.zeros, skipping, strict=True)]

    def write(self, n: int, progress: Progress) -> list[int]:
        """`n` token ids that the model generates at temperature 1."""
        return write(self.model, n, seed=1, progress=progress)[1:]


def random_ids(n_vocab: int, n: int) -> list[int]:
    """Deterministic random token ids."""
    ids: Tensor = torch.randint(n_vocab, (n,), generator=torch.Generator().manual_seed(1))
    return ids.tolist()

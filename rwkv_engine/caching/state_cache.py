"""Keeps the states after prompts, so that a prompt which begins as an earlier one is read only from there on.

A state is kept after each prompt, after every chunk on the way, and where a prompt leaves those that are known: what
many prompts begin with is thus noticed at the second of them, and has a state for all further ones.

Reading through a cache changes no bit. The CPU's kernels give a prompt the same state wherever it was cut
(`Model.read`). Generated tokens go through `Model.step`, which gives the same bits with int8 weights
(`Model.steps_as_it_reads`): then the state after an answer is kept, too. In other formats the results differ by
rounding, so the next turn of a conversation begins from the end of the last prompt, and reads the answer again, at the
speed of prompts. Without compiled kernels, and on a GPU, results depend by rounding on where a prompt is cut, whether
by a cache or by the scheduler.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch

from rwkv_engine.caching.state_files import StateFiles
from rwkv_engine.caching.state_identity import identity_of
from rwkv_engine.caching.state_memory import StateMemory, entry_bytes
from rwkv_engine.checks import require, require_ids, require_text
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.models import Model

# A state that saves fewer tokens than this is not worth the pass over the weights that would end there.
NEAR = 16


class Found(NamedTuple):
    """What a cache knows of a prompt.

    Attributes:
        state: the state after the longest prefix that has one, a copy; None if none has.
        edges: the numbers of tokens after which the state is to be given to `keep`, in ascending order.
    """

    state: State | None
    edges: Sequence[int]


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache has done, and what it contains.

    Attributes:
        hits: the number of prompts of which a state was found.
        misses: that of the others.
        tokens_saved: the tokens that were not read because of that.
        entries: the states in memory.
        n_bytes: the memory that they take, with the prefixes that lead to them.
        evictions: the states that made room for others in memory.
        file_hits: the hits whose states came from files.
        files: the states of this model in files.
        file_bytes: the size of all files of the folder, also of other models.
        file_evictions: the files that made room for others.
    """

    hits: int
    misses: int
    tokens_saved: int
    entries: int
    n_bytes: int
    evictions: int
    file_hits: int
    files: int
    file_bytes: int
    file_evictions: int


class StateCache:
    """The states after the prompts of one model, found by the longest common prefix, within a memory budget.

    `model.state_cache = StateCache()` turns it on. The states that were used least recently make room for others. What
    is kept for one owner is never used for another, so no owner can tell from the time that a prompt takes what others
    have asked. With a folder, states are also kept in files, and another process finds them again, if everything that
    decides their bits is the same: weights, strategy, kernels and versions.

    All methods may be called from any thread. If weights are changed in place, `clear` must be called.

    Attributes:
        keeps_answers: whether states after generated tokens are kept too.
    """

    def __init__(
        self, memory_bytes: int = 2**30, folder: str | Path | None = None, disk_bytes: int = 10 * 2**30
    ) -> None:
        """Creates an empty cache.

        Args:
            memory_bytes: the largest size in memory.
            folder: where states are kept in files too; it is made when the cache is assigned to a model. Several models
                and processes may share it.
            disk_bytes: the largest size of all files of that folder.

        Raises:
            RequestError: a value is out of range.
        """
        for name, value in (("memory_bytes", memory_bytes), ("disk_bytes", disk_bytes)):
            require(name, value, Integral, lambda n: n >= 0, "an integer >= 0")
        require("folder", folder, (str, PathLike, type(None)), lambda _: True, "the name of a folder, or None")
        self._folder, self._memory_bytes, self._disk_bytes = folder, memory_bytes, disk_bytes
        self._lock = threading.Lock()
        self._memory = StateMemory(memory_bytes)
        self._files: StateFiles | None = None
        self._model: Model | None = None
        self._home, self._chunk = torch.device("cpu"), 0
        self.keeps_answers = False
        self._hits = self._misses = self._tokens_saved = self._file_hits = 0

    def attach(self, model: Model, chunk: int) -> None:
        """Makes it the cache of a model; a scheduler calls this.

        Args:
            model: the model that computes the states.
            chunk: the number of tokens of a prompt after which a state is kept.

        Raises:
            RequestError: it is the cache of another model, or its folder cannot be used.
        """
        with self._lock:
            if self._model not in (None, model):
                raise RequestError("state_cache: got the cache of another model, expected a StateCache of its own")
            if self._folder is not None and self._files is None:
                self._files = StateFiles(Path(self._folder), identity_of(model), self._disk_bytes)
            self._model, self._home, self._chunk = model, model.device_map.home, chunk
            self.keeps_answers = model.steps_as_it_reads

    def find(self, prompt: Sequence[int], owner: str) -> Found:
        """The state to read a prompt from. At least one token is left to be read, because its logits are needed."""
        tokens = prompt[:-1]
        with self._lock:
            state, n_common, pinned = self._memory.known(tokens, owner)
            n = int(state.position) if state else 0
            if self._files:
                if loaded := self._files.longest(owner, tokens, n):
                    state, n = loaded, int(loaded.position)
                    self._memory.add(tokens[:n], owner, loaded)
                    self._file_hits += 1
                elif state:
                    self._files.touch(self._files.name(owner, tokens[:n]))
            self._hits += n > 0
            self._misses += n == 0
            self._tokens_saved += n
            branch = [n_common] if n_common >= n + NEAR else []
            stops = sorted(stop for stop in {*branch, *pinned, len(prompt)} if stop > n)
            return Found(state and state.to(self._home, copy=True), _edges(n, stops, self._chunk))

    def keep(self, prefix: Sequence[int], owner: str, state: State) -> None:
        """Keeps a copy of the state after a prefix of a prompt or of a text, if there is room for it."""
        with self._lock:
            self._memory.add(prefix, owner, state)
            if self._files:
                self._files.add(self._files.name(owner, prefix), state.to("cpu"))

    def pin(self, tokens: Sequence[int], owner: str = "") -> None:
        """Makes the state after a prefix stay, such as that after a system prompt.

        The next prompt that begins with it is read up to there, and the state kept, unless there is one already.

        Args:
            tokens: the ids that prompts begin with. Before further text, the last token of a text can be another one;
                it is the same if a line ends there.
            owner: whose prompts begin with it.

        Raises:
            RequestError: the tokens are not ids; the cache belongs to no model yet; or what is pinned does not fit into
                its memory.
        """
        with self._lock:
            ids, model = self._checked(tokens, owner)
            if not self._memory.pin(ids, owner, entry_bytes(State.initial(model.config))):
                raise RequestError(
                    f"tokens: got {len(ids)}, and no room to pin the state after them; unpin others, or create the"
                    f" cache with more memory_bytes than {self._memory_bytes}"
                )
            if self._files:
                self._files.pinned.add(self._files.name(owner, ids))

    def unpin(self, tokens: Sequence[int], owner: str = "") -> None:
        """Lets a pinned state make room for others again.

        Raises:
            RequestError: this prefix is not pinned.
        """
        with self._lock:
            ids, _ = self._checked(tokens, owner)
            if not self._memory.unpin(ids, owner):
                raise RequestError(f"tokens: got {len(ids)} that are not pinned, expected those given to pin")
            if self._files:
                self._files.pinned.discard(self._files.name(owner, ids))

    def clear(self) -> None:
        """Forgets all states, in memory and in files of this model. What is pinned stays so, and is read again."""
        with self._lock:
            self._memory.clear()
            if self._files and self._model:
                self._files.clear()
                self._files.identify(identity_of(self._model))  # its weights may be others now

    @property
    def statistics(self) -> CacheStatistics:
        """What the cache has done since it was created, and what it contains now."""
        with self._lock:
            memory, files = self._memory, self._files
            return CacheStatistics(
                hits=self._hits,
                misses=self._misses,
                tokens_saved=self._tokens_saved,
                entries=memory.entries,
                n_bytes=memory.n_bytes,
                evictions=memory.evictions,
                file_hits=self._file_hits,
                files=files.n_states if files else 0,
                file_bytes=files.n_bytes if files else 0,
                file_evictions=files.evictions if files else 0,
            )

    def _checked(self, tokens: Sequence[int], owner: str) -> tuple[list[int], Model]:
        require_text("owner", owner)
        if self._model is None:
            raise RequestError("the cache belongs to no model yet; assign it first: model.state_cache = cache")
        ids = require_ids("tokens", tokens, self._model.config.n_vocab, "the model's vocabulary")
        if not ids:
            raise RequestError("tokens: got none, expected those that prompts begin with")
        return ids, self._model


def _edges(begin: int, stops: Iterable[int], chunk: int) -> list[int]:
    """The stops, and between them the ends of chunks counted from the stop before, where parts of prompts end too."""
    edges: list[int] = []
    for stop in stops:
        edges += [*range(begin + chunk, stop, chunk), stop]
        begin = stop
    return edges

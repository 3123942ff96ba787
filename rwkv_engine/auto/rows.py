"""The rows of `generate` as requests of a scheduler, with which other texts share passes over the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rwkv_engine.auto.writing import Streamer, Writing
from rwkv_engine.core.state import State
from rwkv_engine.generation.request import Request
from rwkv_engine.generation.scheduler import scheduler_of


class Row(Request):
    """One text. The token that ends it is part of it, as in transformers; no other request has its stop token."""

    def __init__(self, index: int, writing: Writing, state: State):
        """`index`: which of the R texts; `state`: before its prompt."""
        prompt = writing.texts[writing.repeated[index]].tolist()
        most = writing.sequences.shape[1] - writing.width
        super().__init__(prompt, writing.sampler, most, state, sample=index)
        self._scores, self._stopping = writing.scores, writing.stopping

    @property
    def adjusts(self) -> bool:
        """See `Request.adjusts`."""
        return self._scores.change

    def adjusted(self, logits: Tensor) -> Tensor:
        """See `Request.adjusted`."""
        return self._scores(logits, [self.sample], len(self.tokens))

    def accept(self, token: int) -> bool:
        """See `Request.accept`."""
        self._scores.add([self.sample], torch.tensor([token]))
        return not self._stopping.ends_with(self.sample, token)


@dataclass
class Rows(Writing):
    """Texts that do not depend on each other."""

    _rows: list[Row] = field(default_factory=list)

    def run(self, streamer: Streamer | None) -> list[int]:
        """See `Writing.run`."""
        # Texts that continue one prompt have the same state, not equal ones: then the prompt is read once.
        begin = [self.before.rows(slice(i, i + 1)) for i in range(len(self.texts))]
        self._rows = rows = [Row(i, self, begin[j]) for i, j in enumerate(self.repeated)]
        scheduler = scheduler_of(self.engine)
        if streamer is not None:
            streamer.put(self.sequences[:, : self.width])
        try:
            for row in rows:
                row.wanted = 1  # until all prompts are read, because that is slower while texts are running
                scheduler.add(row)
            for n, column in enumerate(self.sequences[:, self.width :].unbind(1)):
                scheduler.wait(lambda n=n: all(len(row.tokens) > n or row.finish_reason for row in rows))  # type: ignore[misc]
                if error := next((row.error for row in rows if row.error), None):
                    raise error
                longer = [row for row in rows if len(row.tokens) > n]
                if not longer:
                    break
                for row in longer:
                    row.wanted = math.inf
                column[[row.sample for row in longer]] = torch.tensor([row.tokens[n] for row in longer])
                if streamer is not None:
                    streamer.put(column)
            scheduler.wait(lambda: all(row.finish_reason for row in rows))
        finally:
            for row in rows:
                if not row.finish_reason:
                    scheduler.abort(row)
        if streamer is not None:
            streamer.end()
        return [len(row.tokens) for row in rows]

    def state(self) -> State:
        """See `Writing.state`."""
        states = State.join([row.state for row in self._rows if row.state])
        return self.engine.forward(torch.tensor([row.unread for row in self._rows]), states)[1]

"""The loop of `generate` where a scheduler cannot run it: R texts grow by one token each per step, in one batch.

Processors and criteria are given all rows at once. More rows than a scheduler runs at a time share one pass over the
weights here, and a prompt is read once for however many texts continue it.
"""

from __future__ import annotations

import torch

from rwkv_engine.auto.writing import Streamer, Writing
from rwkv_engine.core.state import State
from rwkv_engine.runtime.ragged import read_ragged


class Lockstep(Writing):
    """Texts that stay in step with each other."""

    _written: list[torch.Tensor]
    _begun: State

    def run(self, streamer: Streamer | None) -> list[int]:
        """See `Writing.run`."""
        last_logits, after = read_ragged(self.engine.forward, self.texts, self.before)
        which = torch.tensor(self.repeated, dtype=torch.int64)
        logits = torch.stack(last_logits)[which.to(last_logits[0].device)]
        self._begun = state = after.rows(which.to(after.position.device))
        # Processors and criteria look at all rows, so texts that have ended stay in the batch.
        all_stay = bool(self.scores.processors or self.stopping.criteria)
        rows = list(range(len(self.sequences)))  # those in the batch
        running, lengths = set(rows), [0] * len(rows)
        if streamer is not None:
            streamer.put(self.sequences[:, : self.width])
        for end in range(self.width, self.sequences.shape[1]):
            scores = self.scores(logits, rows, end - self.width, self.sequences[:, :end])
            tokens = self.sampler.pick(logits, scores, state.position, rows)
            new = {row: token for row, token in zip(rows, tokens, strict=True) if row in running}
            written = torch.tensor(list(new.values()), dtype=torch.int64)
            self.sequences[list(new), end] = written
            self.scores.add(list(new), written)
            for row in new:
                lengths[row] += 1
            if streamer is not None:
                streamer.put(self.sequences[:, end])
            running -= self.stopping.ended(new, self.sequences[:, : end + 1])
            if not running or end + 1 == self.sequences.shape[1]:
                break
            stay = [i for i, row in enumerate(rows) if all_stay or row in running]
            if len(stay) < len(rows):
                rows, tokens = [rows[i] for i in stay], [tokens[i] for i in stay]
                state = state.rows(torch.tensor(stay, dtype=torch.int64, device=state.position.device))
            logits, state = self.engine.forward(torch.tensor(tokens, dtype=torch.int64).unsqueeze(1), state)
        if streamer is not None:
            streamer.end()
        self._written = [row[self.width : self.width + n] for row, n in zip(self.sequences, lengths, strict=True)]
        return lengths

    def state(self) -> State:
        """See `Writing.state`."""
        return read_ragged(self.engine.forward, self._written, self._begun)[1]

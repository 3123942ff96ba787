"""Texts written side by side, a token of each at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rwkv_engine.auto.scores import Scores
from rwkv_engine.auto.stopping import Stopping
from rwkv_engine.core.state import State
from rwkv_engine.generation import Sampler
from rwkv_engine.runtime import Engine


class Streamer(Protocol):
    """`TextStreamer`, or one of transformers."""

    def put(self, value: Tensor) -> None:
        """Takes the prompts (R, T), then a token of each text (R,)."""

    def end(self) -> None:
        """All texts have ended."""


@dataclass
class Writing:
    """R texts.

    Attributes:
        engine, sampler, scores, stopping: what runs the model, draws tokens, adjusts logits, and ends texts.
        sequences: ids (R, T) on the CPU: prompts of `width` tokens, then padding that is written over.
        all_stay: texts that have ended stay in the batch, for those who want to see all rows; else they leave it.
    """

    engine: Engine
    sampler: Sampler
    scores: Scores
    stopping: Stopping
    sequences: Tensor
    width: int
    all_stay: bool

    def run(self, logits: Tensor, state: State, streamer: Streamer | None = None) -> list[int]:
        """Writes until all texts have ended, or `sequences` are full.

        Args:
            logits: (R, V) after the prompts.
            state: of R texts, likewise.
            streamer: is handed the prompts, then what is written.

        Returns:
            How many tokens of each text are new.
        """
        rows = list(range(len(self.sequences)))  # those in the batch
        running, lengths = set(rows), [0] * len(rows)
        if streamer is not None:
            streamer.put(self.sequences[:, : self.width])
        for end in range(self.width, self.sequences.shape[1]):
            scores = self.scores(logits, rows, end - self.width, self.sequences[:, :end])
            tokens = self.sampler.pick(logits, scores, state.position, rows)
            new = {row: token for row, token in zip(rows, tokens, strict=True) if row in running}
            written = torch.tensor(list(new.values()))
            self.sequences[list(new), end] = written
            self.scores.add(list(new), written)
            for row in new:
                lengths[row] += 1
            if streamer is not None:
                streamer.put(self.sequences[:, end])
            running -= self.stopping.ended(new, self.sequences[:, : end + 1])
            if not running or end + 1 == self.sequences.shape[1]:
                break
            stay = [i for i, row in enumerate(rows) if self.all_stay or row in running]
            if len(stay) < len(rows):
                rows, tokens = [rows[i] for i in stay], [tokens[i] for i in stay]
                state = state.rows(torch.tensor(stay, device=state.position.device))
            logits, state = self.engine.forward(torch.tensor(tokens).unsqueeze(1), state)
        if streamer is not None:
            streamer.end()
        return lengths

"""Prefills texts of different lengths as one batch without padding.

`read_texts` passes the rows of all texts through each layer together. `read_ragged` is for functions that take
rectangular batches only: a text leaves the batch at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rwkv_engine.core.state import State

Read = Callable[[Tensor, State], tuple[Tensor, State]]


class ReadRows(Protocol):
    """Runs a model over the tokens of several texts one after another, as `Model.read` does."""

    def __call__(self, tokens: Tensor, state: State, *, lengths: Sequence[int]) -> tuple[Tensor, State]:
        """Ids (1, N), the state of B sequences, and their lengths -> outputs (1, N, ...) and the new state."""
        ...


def read_texts(
    read: ReadRows, texts: Sequence[Tensor], state: State, chunk: int | None = None
) -> tuple[list[Tensor], State]:
    """Runs a model over B texts of different lengths.

    Args:
        read: runs the model over the rows of all texts, as `Model.read` does.
        texts: the ids of each text, (T_i,) int64, T_i >= 1.
        state: the state of the B sequences; not modified.
        chunk: the largest number of tokens of each text that are processed at once; None for no limit.

    Returns:
        The outputs of each text, (T_i, ...); and the state after the last token of each text.
    """
    # Texts of the same length are neighbours, because the recurrence runs for them together.
    longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    order = torch.tensor(longest_first, device=state.position.device)
    running = state.rows(order)
    outputs: list[list[Tensor]] = [[] for _ in texts]
    ended: list[State] = []
    longest = len(texts[longest_first[0]])
    for begin in range(0, longest, chunk or longest):
        parts = [texts[i][begin : begin + (chunk or longest)] for i in longest_first if len(texts[i]) > begin]
        ended.append(running.rows(slice(len(parts), None)))
        lengths = [len(part) for part in parts]
        rows, running = read(torch.cat(parts).unsqueeze(0), running.rows(slice(0, len(parts))), lengths=lengths)
        for i, output in zip(longest_first, rows[0].split(lengths), strict=False):
            outputs[i].append(output)
    whole = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in outputs]
    return whole, State.join([running, *ended[::-1]]).rows(order.argsort())


def read_ragged(read: Read, texts: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """Runs a model over B texts of different lengths.

    Args:
        read: runs a model over ids (N, T) from the state of N sequences, as `Model.forward`, `Model.read` and
            `Engine.forward` do; returns outputs (N, T, ...), or (N, ...) for the last token only, and the new state.
        texts: the ids of each text, (T_i,) int64, T_i >= 1.
        state: the state of the B sequences; not modified.

    Returns:
        The outputs of each text, (T_i, ...), or (...) if `read` returns only the last token's; and the state after the
        last token of each text.
    """
    longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    running = state.rows(torch.tensor(longest_first, device=state.position.device))
    outputs: list[list[Tensor]] = [[] for _ in texts]
    ended: list[State] = []  # the shortest texts first
    begin = 0
    for end in sorted({len(text) for text in texts}):
        alive = longest_first[: running.batch]
        part, running = read(torch.stack([texts[i][begin:end] for i in alive]), running)
        for i, output in zip(alive, part, strict=True):
            outputs[i] = [*outputs[i], output] if output.ndim > 1 else [output]
        still = sum(len(texts[i]) > end for i in alive)
        ended.append(running.rows(slice(still, None)))
        running, begin = running.rows(slice(0, still)), end
    places = torch.tensor(longest_first, device=state.position.device).argsort()
    whole = [torch.cat(parts) if parts[0].ndim > 1 else parts[0] for parts in outputs]
    return whole, State.join(ended[::-1]).rows(places)

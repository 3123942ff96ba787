"""Prefills texts of different lengths as one batch without padding: a text leaves the batch at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rwkv_engine.core.state import State

Read = Callable[[Tensor, State], tuple[Tensor, State]]


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

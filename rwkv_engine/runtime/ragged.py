"""Texts of different lengths as one batch, with nothing padded: a text leaves the batch where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rwkv_engine.core.state import State

Read = Callable[[Tensor, State], tuple[Tensor, State]]


def read_ragged(read: Read, texts: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """Reads B texts of different lengths.

    Args:
        read: reads ids (N, T) from N states; returns outputs (N, T, ...) or, of the last token alone, (N, ...), and N
            new states, as `Model.forward`, `Model.read` and `Engine.forward` do.
        texts: the ids of each, (T_i,) int64, T_i >= 1.
        state: of B sequences; not modified.

    Returns:
        The outputs of each text, (T_i, ...), or (...) where `read` returns those of the last token; and the states
        after the last token of each.
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

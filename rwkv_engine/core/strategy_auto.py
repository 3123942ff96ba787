"""What `auto` stands for: float16 on the GPUs as far as their memory goes, the rest on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

# Left free on every GPU for torch's context and libraries, activations of a chunk, states and captured graphs.
RESERVE = 1_500_000_000


def best_strategy(half: Sequence[int], single: Sequence[int], gpus: Sequence[int], main: int | None) -> str:
    """The strategy, as text, for what is free.

    GPUs are filled one after the other, so that an activation passes as few borders as can be. What no GPU has room
    for runs on the CPU, in float32 if that fits into main memory, else in bfloat16.

    Args:
        half, single: bytes of each layer, the head last, with 16-bit and with 32-bit matrices.
        gpus: free bytes of each GPU.
        main: free bytes of main memory; None if nothing tells.
    """
    segments = []
    placed = 0
    for i, free in enumerate(gpus):
        first, room = placed, free - RESERVE
        while placed < len(half) and half[placed] <= room:
            room -= half[placed]
            placed += 1
        if placed > first:
            segments.append(f"{'cuda' if len(gpus) == 1 else f'cuda:{i}'} fp16 *{placed - first}")
    if placed < len(half):
        exact = main is None or sum(single[placed:]) < main
        segments.append("cpu fp32" if exact else "cpu bf16")
    else:
        segments[-1] = segments[-1].rpartition(" *")[0]  # the last one takes what is left
    return " -> ".join(segments)

"""What a round measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Steps of a batch in one measurement; each takes as long as a token or longer.
STEPS = 4
NEAR = 100  # the position that a distant one is compared with


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        rounds: that count; one more comes first, to warm up.
        starts: fresh processes for the time to the first token; one more comes first, to have the file in memory.
        decode: tokens decoded in a measurement.
        prefill: lengths of prompts.
        batch: numbers of sequences.
        position: how far to read before decoding, to compare that with position 100; 0 does not.
    """

    rounds: int = 5
    starts: int = 3
    decode: int = 32
    prefill: tuple[int, ...] = (16, 256, 1024)
    batch: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    position: int = 0


@dataclass(frozen=True)
class Measurement:
    """One command to each engine.

    Attributes:
        name: unique in a plan: "decode", "prefill 256", "batch 8", "position 100000".
        do: the command, see `Measurements`.
        arguments: its arguments.
        tokens: read by it.
        ours_alone: whether only this engine can do it.
    """

    name: str
    do: str
    arguments: dict[str, int]
    tokens: int
    ours_alone: bool = False


def plan(settings: Settings) -> list[Measurement]:
    """The measurements of a round, in order."""
    found = [Measurement("decode", "decode", {"tokens": settings.decode}, settings.decode)]
    found += [Measurement(f"prefill {n}", "prefill", {"tokens": n}, n) for n in settings.prefill]
    found += [
        Measurement(f"batch {size}", "batch", {"size": size, "steps": STEPS}, size * STEPS, True)
        for size in settings.batch
    ]
    found += [
        Measurement(f"position {p}", "at", {"position": p, "tokens": settings.decode}, settings.decode, True)
        for p in positions(settings)
    ]
    return found


def positions(settings: Settings) -> Sequence[int]:
    """Where the time per token is measured, lowest first."""
    return [NEAR, settings.position] if settings.position else []

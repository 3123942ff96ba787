"""Requests as a server gets them: when each arrives, how long its prompt is, and how many tokens it wants."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Arrival:
    """One request.

    Attributes:
        seconds: after the beginning of the measurement.
        prompt: token ids.
        tokens: to be generated; nothing ends the text earlier.
    """

    seconds: float
    prompt: Sequence[int]
    tokens: int


# For each request the seconds, after the beginning of the measurement, at which its tokens were there.
Times = list[list[float]]


def draw_arrivals(
    n: int, rate: float, prompts: tuple[int, int], answers: tuple[int, int], n_vocab: int, seed: int
) -> list[Arrival]:
    """Requests of a Poisson process; the logarithms of their lengths are uniform, so that few are long.

    Args:
        n: the number of requests.
        rate: the mean number per second.
        prompts, answers: the smallest and the largest number of tokens.
        n_vocab: the size of the vocabulary.
        seed: equal seeds give equal requests.
    """
    rng, now, found = random.Random(seed), 0.0, []
    for _ in range(n):
        now += rng.expovariate(rate)
        length, tokens = _length(rng, *prompts), _length(rng, *answers)
        found.append(Arrival(now, [rng.randrange(n_vocab) for _ in range(length)], tokens))
    return found


def _length(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def tokens_per_second(arrivals: Sequence[Arrival], times: Times) -> float:
    """Of all requests together, from the first arrival to the last token."""
    last = max(own[-1] for own in times)
    return sum(map(len, times)) / (last - min(arrival.seconds for arrival in arrivals))


def first_tokens(arrivals: Sequence[Arrival], times: Times) -> list[float]:
    """For each request the seconds from its arrival to its first token."""
    return [own[0] - arrival.seconds for arrival, own in zip(arrivals, times, strict=True)]


def gaps(times: Times) -> list[float]:
    """The seconds between two consecutive tokens of a request, of all requests."""
    return [after - before for own in times for before, after in pairwise(own)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of at least one value that `percent` of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]

"""What drafts cost: how much longer a step takes with further rows, from the steps so far."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

# A step counts this much against all earlier ones of the same size.
_NEWS = 0.1
# What is assumed before anything is known, as shares of a step of one row: preparing a draft, and each of its tokens.
# The weights are read once for all rows, so a row is cheap; the smaller the model, the less so.
_PREPARING, _TOKEN = 0.02, 0.12


class StepCost:
    """Times of steps, by the number of texts and of drafted tokens. They decide only how much is drafted."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], float] = {}

    def add(self, texts: int, drafted: int, seconds: float) -> None:
        """Records a step."""
        before = self._seconds.setdefault((texts, drafted), seconds)
        self._seconds[texts, drafted] += _NEWS * (seconds - before)

    def best_draft(self, texts: int, chances: Sequence[float]) -> int:
        """The length of the draft with which a step of `texts` texts makes most tokens per second.

        `chances` are the probabilities that each token of the longest draft is right if those before it are.
        """
        best, best_rate, expected = 0, float(texts), float(texts)
        for n, chance in enumerate(accumulate(chances, mul), 1):
            expected += chance
            if (rate := expected / self._relative(texts, n)) > best_rate:
                best, best_rate = n, rate
        return best

    def _relative(self, texts: int, drafted: int) -> float:
        """The time of a step with a draft, relative to one without."""
        one = 1 + _TOKEN * (texts - 1)  # the assumed time of these texts without drafts, in steps of one row
        assumed = 1 + (_PREPARING + _TOKEN * drafted) / one
        alone, measured = self._seconds.get((texts, 0)), self._seconds.get((texts, drafted))
        if not alone or not measured:
            return assumed
        # Within limits: a draft that seems too expensive is not made, so it would never be measured again.
        return min(max(measured / alone, 1 + (assumed - 1) / 4), 1 + 3 * (assumed - 1))

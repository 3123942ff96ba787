"""Guesses the next tokens of a text from the text itself: a draft, which one pass over the weights checks.

A text that repeats (a form to fill, code to edit, a story to retell) often goes on as it did the last time that its
last tokens occurred in it. The model checks all tokens of a draft in one step, and samples from its own logits at each
of them, so a wrong draft costs time but never changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable

# The lengths of the runs of tokens that are looked up, longest first.
_RUNS = (6, 4, 3, 2)
# How much a guess counts that was right or wrong just now, against all earlier ones.
_NEWS = 0.06
# The share of right guesses that is assumed before any.
_ASSUMED = 0.5


class Drafts:
    """What has followed each run of tokens in one text, and how often that was right.

    Whether the next token would have been guessed is recorded for every token, also for those that no draft contained,
    because that costs no step of the model.
    """

    def __init__(self, tokens: Iterable[int]):
        """`tokens`: the text so far."""
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a run: the index of what followed it the last time
        self._right = dict.fromkeys(_RUNS, _ASSUMED)  # the share of right guesses after a run of this length
        for token in tokens:
            self._append(token)

    def add(self, token: int) -> None:
        """Adds the next token of the text."""
        run, at = self._longest()
        if run:
            self._right[run] += _NEWS * ((self._tokens[at] == token) - self._right[run])
        self._append(token)

    def guess(self, most: int, least_chance: float) -> list[int]:
        """At most `most` tokens that may follow, as long as all of them are right with at least this probability."""
        run, at = self._longest()
        if not run:
            return []
        chance, guessed = self._right[run], list[int]()
        while len(guessed) < most and chance >= least_chance:
            # Where what followed is shorter than the draft, it repeats: the draft is its own continuation.
            i = at + len(guessed)
            guessed.append(self._tokens[i] if i < len(self._tokens) else guessed[i - len(self._tokens)])
            chance *= self._right[run]
        return guessed

    def _longest(self) -> tuple[int, int]:
        """The length of the longest run at the end that has occurred before, and what followed; (0, 0) if none has."""
        for run in _RUNS:
            if (at := self._after.get(tuple(self._tokens[-run:]))) is not None:
                return run, at
        return 0, 0

    def _append(self, token: int) -> None:
        for run in _RUNS:
            if len(self._tokens) >= run:
                self._after[tuple(self._tokens[-run:])] = len(self._tokens)
        self._tokens.append(token)

"""Guesses the next tokens of a text from the text itself: a draft, which one pass over the weights checks.

A text that repeats (a form to fill, code to edit, a story to retell) often goes on as it did the last time that its
last tokens occurred in it. The model checks all tokens of a draft in one step, and samples from its own logits at each
of them, so a wrong draft costs time but never changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable

# The lengths of the runs of tokens that are looked up, longest first, and the share of right guesses that is assumed of
# each before any was seen, which counts as much as two guesses.
_RUNS = {6: 0.7, 4: 0.5, 3: 0.4, 2: 0.25}
_ASSUMED_COUNT = 2.0
# With every further guess, an earlier one counts less by this factor.
_FORGETTING = 0.95


class _Record:
    """How often guesses after runs of one length were right, recently."""

    def __init__(self, assumed: float):
        self._right, self._all = _ASSUMED_COUNT * assumed, _ASSUMED_COUNT

    def add(self, is_right: bool) -> None:
        self._right = _FORGETTING * self._right + is_right
        self._all = _FORGETTING * self._all + 1

    @property
    def share(self) -> float:
        return self._right / self._all


class Drafts:
    """What has followed each run of tokens in one text, and how often that was right.

    Whether the next token would have been guessed is recorded for every token, also for those that no draft contained,
    because that costs no step of the model.
    """

    def __init__(self, tokens: Iterable[int]):
        """`tokens`: the text so far."""
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a run: the index of what followed it the last time
        self._records = {run: _Record(assumed) for run, assumed in _RUNS.items()}
        for token in tokens:
            self._append(token)

    def add(self, token: int) -> None:
        """Adds the next token of the text."""
        run, at = self._longest()
        if run:
            self._records[run].add(self._tokens[at] == token)
        self._append(token)

    def guess(self, most: int) -> tuple[list[int], float]:
        """`most` tokens that may follow, or none; and how likely each is to be right if those before it are."""
        run, at = self._longest()
        if not run:
            return [], 0.0
        guessed = self._tokens[at : at + most]
        while len(guessed) < most:  # what followed is shorter, so it repeats: the draft is its own continuation
            guessed.append(guessed[at + len(guessed) - len(self._tokens)])
        return guessed, self._records[run].share

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

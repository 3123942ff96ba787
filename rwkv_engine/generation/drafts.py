"""Guesses the next tokens of a text from the text itself: a draft, which one pass over the weights checks.

A text that repeats (a form to fill, code to edit, a story to retell) often goes on as it did the last time that its
last tokens occurred in it. The model checks all tokens of a draft in one step, and samples from its own logits at each
of them, so a wrong draft costs time but never changes the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# The lengths of the runs of tokens that are looked up, longest first, and the share of right guesses that is assumed of
# each before any was seen, which counts as much as two guesses.
_RUNS = {6: 0.7, 4: 0.5, 3: 0.4, 2: 0.25}
# The same for the next token of a passage that the text follows with changes: after a token that differs; after one
# that was found again further on, as the end of a line is after a field that was filled in differently; and after a
# right guess.
_FOLLOWING = {"replaced": 0.15, "found": 0.5, "right": 0.6}
# How far after the first difference a token is looked for, and how many differences end the passage.
_WINDOW = 16
# The same for guesses after a right one, by whether the token that is repeated was guessed right itself; None if there
# was no guess.
_AFTER_RIGHT = {None: 0.7, True: 0.8, False: 0.5}
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

    Whether the next token would have been guessed is known for every token, also for those that no draft contained,
    because that costs no step of the model. A token that was guessed itself, such as the name of a field in a form, is
    more likely to come again than one that was not, such as what was filled in. So a guess is judged by how it was
    found, and by whether the token that it repeats was guessed.
    """

    def __init__(self, tokens: Iterable[int]):
        """`tokens`: the text so far. Its guesses are not counted, because a prompt may repeat less than its answer."""
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a run: the index of what followed it the last time
        self._guessed: list[bool | None] = []  # whether each token was guessed right, None if it was not guessed
        shares: list[tuple[int | str, float]] = [*_RUNS.items(), *_FOLLOWING.items()]
        self._first = {(how, known): _Record(share) for how, share in shares for known in _AFTER_RIGHT}
        self._later = {known: _Record(share) for known, share in _AFTER_RIGHT.items()}
        self._passage = _Passage()
        for token in tokens:
            self._append(token, False)

    def add(self, token: int) -> None:
        """Adds the next token of the text."""
        self._append(token, True)

    def guess(self, most: int) -> tuple[list[int], list[float]]:
        """`most` tokens that may follow, or none; and how likely each is to be right if those before it are."""
        how, at = self._next()
        if not how:
            return [], []
        places = list(range(at, min(at + most, len(self._tokens))))
        while len(places) < most:  # what followed is shorter, so it repeats: the draft is its own continuation
            places.append(places[at + len(places) - len(self._tokens)])
        records = [self._first[how, self._guessed[at]], *(self._later[self._guessed[place]] for place in places[1:])]
        return [self._tokens[place] for place in places], [record.share for record in records[:most]]

    def _next(self) -> tuple[int | str, int]:
        """How the next token is guessed, and the index of an equal one: what followed the longest run at the end that
        has occurred before, else the passage that the text follows; (0, 0) if there is no guess."""
        for run in _RUNS:
            if (at := self._after.get(tuple(self._tokens[-run:]))) is not None:
                return run, at
        if self._passage.how and self._passage.at < len(self._tokens):
            return self._passage.how, self._passage.at
        return 0, 0

    def _append(self, token: int, counts: bool) -> None:
        how, at = self._next()
        is_right = self._tokens[at] == token if how else None
        if is_right is not None:
            if counts:
                self._first[how, self._guessed[at]].add(is_right)
            if counts and self._guessed[-1]:
                self._later[self._guessed[at]].add(is_right)
            self._passage.follow(self._tokens, at, token)
        for run in _RUNS:
            if len(self._tokens) >= run:
                self._after[tuple(self._tokens[-run:])] = len(self._tokens)
        self._tokens.append(token)
        self._guessed.append(is_right)


class _Passage:
    """An earlier passage of a text that its end follows with changes.

    Attributes:
        how: the key in `_FOLLOWING` of the last token; "" if no passage is followed.
        at: the index of the passage's next token.
    """

    def __init__(self) -> None:
        self.how, self.at = "", 0
        self._differs = 0  # the index of the first token that differed, and the number of tokens since
        self._n = 0

    def follow(self, tokens: Sequence[int], at: int, token: int) -> None:
        """Adds a token of the text where the passage has `tokens[at]`."""
        if tokens[at] == token:
            self.how, self.at, self._n = "right", at + 1, 0
            return
        if not self._n:
            self._differs = at
        self._n += 1
        later = tokens[self._differs : self._differs + _WINDOW]
        if self._n > _WINDOW:
            self.how = ""
        elif token in later:
            self.how, self.at = "found", self._differs + 1 + later.index(token)
        else:
            self.how, self.at = "replaced", at + 1

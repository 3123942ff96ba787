"""Truncating and padding texts to a common length."""

from __future__ import annotations

from dataclasses import dataclass

from rwkv_engine.errors import RequestError

SIDES = ("left", "right")
NO_CUT = (None, False, "do_not_truncate")
NO_PADDING = (False, "do_not_pad")


@dataclass(frozen=True)
class Fitting:
    """The padding and truncation options of a tokenizer call, with the meaning they have in transformers.

    Attributes:
        padding: True or "longest" pads to the longest text, "max_length" to `max_length`.
        truncation: True truncates to `max_length`; so does None, if there is no padding either.
        max_length: a number of tokens; None for no limit.
        padding_side, truncation_side: "left" or "right".

    Raises:
        RequestError: a value is out of range.
    """

    padding: bool | str
    truncation: bool | str | None
    max_length: int | None
    padding_side: str
    truncation_side: str

    def __post_init__(self) -> None:
        if self.max_length is not None and (not isinstance(self.max_length, int) or self.max_length < 1):
            raise RequestError(f"max_length: got {self.max_length!r}, expected an integer >= 1")
        if self.truncation not in (*NO_CUT, True, "longest_first", "only_first"):
            raise RequestError(f"truncation: got {self.truncation!r}, expected True or False")
        if self.padding not in (*NO_PADDING, True, "longest", "max_length"):
            raise RequestError(f"padding: got {self.padding!r}, expected True, False, 'longest' or 'max_length'")
        for name in ("padding_side", "truncation_side"):
            if getattr(self, name) not in SIDES:
                raise RequestError(f"{name}: got {getattr(self, name)!r}, expected 'left' or 'right'")

    @property
    def pads(self) -> bool:
        """Whether texts are padded at all."""
        return self.padding not in NO_PADDING

    def cut(self, ids: list[int]) -> list[int]:
        """The ids of one text, truncated if that was asked for."""
        alone = self.truncation is None and self.padding is False
        limit = None if self.truncation in NO_CUT and not alone else self.max_length
        if limit is None or len(ids) <= limit:
            return ids
        return ids[:limit] if self.truncation_side == "right" else ids[-limit:]

    def width(self, rows: list[list[int]]) -> int:
        """The length that rows are padded to."""
        if self.padding == "max_length":
            return self.max_length or 0
        return max((len(row) for row in rows), default=0) if self.pads else 0

    def filled(self, row: list[int], width: int, value: int) -> list[int]:
        """One row, padded with `value` to at least `width`."""
        fill = [value] * max(0, width - len(row))
        return row + fill if self.padding_side == "right" else fill + row

"""Tells the calls of tools in a text from the rest of it, while the text arrives."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from rwkv_engine.structured.tool_calls import BEGIN, END

# The end of a call, and strings of JSON, which may contain the same characters; one that is not complete goes on to the
# end of the text.
_PARTS = re.compile(rf'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|{END}', re.DOTALL)
_MARK = re.compile(r"[ \t\r\n]*([{}:,])[ \t\r\n]*")


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no {constant}")


# Numbers stay text: what is returned is what was written.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


@dataclass(frozen=True)
class Call:
    """A call of a tool.

    Attributes:
        name: of the function.
        arguments: a JSON object, as the model wrote it.
        id: by which the client names it when it returns the result.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


class CallReader:
    """Reads one text, in pieces of any size; together they give the same whatever their sizes are.

    What is not a valid call of a known tool stays text. White space is dropped where the text begins, and where it ends
    if there are calls.

    Attributes:
        n_calls: the number of calls so far.
    """

    def __init__(self, names: Collection[str], only_calls: bool = False):
        """Begins a text.

        Args:
            names: of the tools.
            only_calls: whether the text around calls is dropped: it is what the format has there.
        """
        self.n_calls = 0
        self._names, self._only_calls = names, only_calls
        self._held = ""  # what may belong to a call
        self._blank = ""  # white space that is text only if text follows
        self._has_begun = False

    def read(self, piece: str, is_end: bool = False) -> tuple[str, list[Call]]:
        """What is certain after a further piece: text, and calls. `is_end`: no piece follows."""
        self._held += piece
        said, calls = "", list[Call]()
        while (begin := self._held.find(BEGIN)) >= 0:
            said += self._text(self._held[:begin])
            rest = self._held[begin + len(BEGIN) :]
            end = next((part.start() for part in _PARTS.finditer(rest) if part[0] == END), None)
            if end is None and not is_end:
                self._held = self._held[begin:]
                return said, calls
            if end is not None and (call := _call(rest[:end], self._names)):
                self.n_calls += 1
                calls.append(call)
                self._held = rest[end + len(END) :]
            else:
                said += self._text(BEGIN)
                self._held = rest
        n = len(self._held) - (0 if is_end else _n_begun(self._held))
        said += self._text(self._held[:n])
        self._held = self._held[n:]
        if is_end and not self.n_calls:
            said += self._blank
        return said, calls

    def _text(self, text: str) -> str:
        if self._only_calls and self.n_calls:
            return ""
        text = self._blank + text if self._has_begun else text.lstrip()
        shown = text.rstrip()
        self._has_begun |= bool(shown)
        self._blank = text[len(shown) :]
        return shown


def _n_begun(text: str) -> int:
    """The number of characters at the end of a text with which a call may begin."""
    return next((n for n in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:n])), 0)


def _call(text: str, names: Collection[str]) -> Call | None:
    """The call that is written between the marks; None if it is not valid."""
    try:
        members = _members(text)
    except (ValueError, RecursionError):
        return None
    (name, _), (arguments, written) = members.get("name", (None, "")), members.get("arguments", (None, ""))
    if isinstance(name, str) and name in names and isinstance(arguments, dict):
        return Call(name, written)
    return None


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """The members of an object in JSON, with the text of each.

    Raises:
        ValueError: it is something else.
    """
    found = dict[str, tuple[Any, str]]()
    mark, at = _mark(text, 0, "{")
    while mark != "}":
        key, at = _DECODER.raw_decode(text, at)
        _, begin = _mark(text, at, ":")
        value, at = _DECODER.raw_decode(text, begin)
        found[str(key)] = value, text[begin:at]
        mark, at = _mark(text, at, ",}")
    if at != len(text):
        raise ValueError("something follows the object")
    return found


def _mark(text: str, at: int, expected: str) -> tuple[str, int]:
    """One of the marks between the parts of JSON, and where the next part begins."""
    found = _MARK.match(text, at)
    if found is None or found[1] not in expected:
        raise ValueError(f"expected one of {expected}")
    return found[1], found.end()

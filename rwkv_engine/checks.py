"""Checks of arguments that users give; each refuses a wrong value with a `RequestError` that says what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from operator import index
from typing import Any

from rwkv_engine.errors import RequestError

SHOWN = 40  # characters of a wrong value that a message shows


def require(name: str, got: Any, kind: type | tuple[type, ...], holds: Callable[[Any], Any], expected: str) -> None:
    """Checks the type and the value of one argument.

    Raises:
        RequestError: `got` is not an instance of `kind`, or `holds(got)` is false. Truth values are not numbers.
    """
    is_truth = isinstance(got, bool) and kind in (Integral, Real)
    if is_truth or not isinstance(got, kind) or not holds(got):
        raise RequestError(f"{name}: got {shown(got)}, expected {expected}")


def require_text(name: str, got: Any) -> bytes:
    """Checks that an argument is a string that UTF-8 can encode.

    Returns:
        The text in UTF-8.

    Raises:
        RequestError: it is not a string, or it holds a surrogate, which is half of a character or a byte that could not
            be decoded.
    """
    if not isinstance(got, str):
        raise RequestError(f"{name}: expected text, got {type(got).__name__} {shown(got)}")
    try:
        return got.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name}: expected text, got the lone surrogate {got[error.start]!r} at character {error.start}; it often"
            " stands for a byte that is not UTF-8, so check the encoding of the text"
        ) from error


def require_ids(name: str, got: Any, limit: int, of: str) -> list[int]:
    """Checks that an argument is a one-dimensional collection of token ids.

    Args:
        name: the argument's name.
        got: integers in any collection, tensor or array.
        limit: ids must be below this number.
        of: the object that has this many ids, for the message.

    Returns:
        The ids as Python integers.

    Raises:
        RequestError: the message shows the first value that is not an id.
    """
    values = got.tolist() if hasattr(got, "tolist") else got
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise RequestError(f"{name}: got {shown(got)}, expected a list of token ids")
    ids = []
    for value in values:
        try:
            token = index(value)
        except TypeError as error:
            raise RequestError(f"{name}: got {shown(value)}, expected integer token ids") from error
        if not 0 <= token < limit:
            raise RequestError(f"{name}: got the token id {token}, expected ids from 0 to {limit - 1}, {of}")
        ids.append(token)
    return ids


def require_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Checks the names of keyword arguments.

    Raises:
        RequestError: the message has the first unknown name and the most similar known one.
    """
    options = list(known)
    for name in names:
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1)
            advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(options)}"
            raise RequestError(f"{name}: there is no such argument; {advice}")


def shown(got: Any) -> str:
    """A value for a message: its `repr` on one line, truncated if it is long."""
    text = repr(got).replace("\n", " ")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

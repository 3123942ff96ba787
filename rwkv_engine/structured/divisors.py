"""Bounds `multipleOf` in schemas, which the library compiles without counting its work.

A number is followed by its remainder, one state of the library for each. What several schemas require of one number is
a remainder for their least common multiple; with one of a million, compiling takes seconds and half a gigabyte, and
with one of ten million it does not end before memory does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError
from rwkv_engine.structured.formats import Format

MOST = 10_000  # takes 50 ms
_JSON = "%json"  # before a schema in a grammar


def require_small_divisors(form: Format) -> None:
    """Checks the values of `multipleOf` in a format, which may be combined in any way.

    Raises:
        RequestError: their least common multiple is too large.
    """
    divisors = [divisor for schema in _schemas(form) for divisor in _divisors(schema)]
    least = math.lcm(*divisors)
    if least > MOST:
        raise RequestError(
            f"{form.kind}: multipleOf: got values with the least common multiple {shown(least)}, counted in their last"
            f" digits, expected at most {MOST}; leave some out, and check the answer for them"
        )


def _schemas(form: Format) -> Iterator[Any]:
    if form.kind == "json_schema":
        yield json.loads(form.source)
    elif form.kind == "grammar":
        for part in form.source.split(_JSON)[1:]:
            try:
                yield json.JSONDecoder().raw_decode(part.lstrip())[0]
            except ValueError:
                continue  # it is in a comment, or the library refuses it


def _divisors(schema: Any) -> Iterator[int]:
    """The values as integers: without a decimal point, and without the zeros at the end, which add no states."""
    parts = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            value = part.get("multipleOf")
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value:
                yield int("".join(map(str, Decimal(repr(value)).as_tuple().digits)).rstrip("0"))
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()

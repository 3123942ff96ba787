"""What a text may look like, before it is known which model will write it.

A format is a value: equal ones are compiled once. It is checked only when it is compiled, because that needs the
library and a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_engine.checks import require, require_text, shown
from rwkv_engine.errors import RequestError


@dataclass(frozen=True, init=False)
class Format:
    """What a text may look like; its subclasses are the kinds.

    Attributes:
        kind: "json_schema", "regex", "choice", "grammar" or "tool_calls".
        source: the schema or the list as JSON, the expression, or the grammar.
        is_compact: whether JSON has no white space between its parts.
    """

    kind: str
    source: str
    is_compact: bool = False

    def _set(self, kind: str, source: str, is_compact: bool = False) -> None:
        for name, value in (("kind", kind), ("source", source), ("is_compact", is_compact)):
            object.__setattr__(self, name, value)


class JsonSchema(Format):
    """JSON that a schema describes (draft 2020-12); properties come in the order of the schema.

    Between its parts JSON may have one blank, or one line break with up to 16 blanks: a model must not be able to write
    white space for ever.
    """

    def __init__(self, schema: Mapping[str, Any], compact: bool = False):
        """Writes the schema as text.

        Args:
            schema: as `json.loads` returns it. What it requires and the library cannot guarantee is refused when the
                schema is compiled; `$ref` can only point into the schema itself.
            compact: no white space between the parts.

        Raises:
            RequestError: it is not a schema, or contains what is not JSON.
        """
        require("schema", schema, Mapping, lambda _: True, "a JSON schema: a dictionary")
        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"schema: got {shown(schema)}, expected what JSON can contain: {error}") from error
        self._set("json_schema", text, compact)


class JsonObject(JsonSchema):
    """Any JSON object."""

    def __init__(self, compact: bool = False):
        super().__init__({"type": "object"}, compact)


class Regex(Format):
    """A text that matches a regular expression from its beginning to its end.

    The syntax is that of Rust's `regex`, which is Perl's without back-references and without looking around.
    """

    def __init__(self, pattern: str):
        require_text("regex", pattern)
        self._set("regex", pattern)


class Choice(Format):
    """One of several texts."""

    def __init__(self, choices: Sequence[str]):
        is_list = not isinstance(choices, str) and isinstance(choices, Sequence)
        if not is_list or not choices:
            raise RequestError(f"choice: got {shown(choices)}, expected a list of one text or more")
        for choice in choices:
            require_text("choice", choice)
        self._set("choice", json.dumps(list(choices)))


class Grammar(Format):
    """A context-free grammar in llguidance's dialect of Lark, where the first rule is `start`, or in GBNF."""

    def __init__(self, text: str):
        require_text("grammar", text)
        self._set("grammar", text)

"""Texts that call functions, in the form that most models with tools are trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rwkv_engine.checks import require, shown
from rwkv_engine.errors import RequestError
from rwkv_engine.structured.compiled import json_options
from rwkv_engine.structured.formats import Format, JsonSchema

BEGIN, END = "<tool_call>", "</tool_call>"
NAME = "[a-zA-Z0-9_-]{1,64}"
MOST_CALLS = 16  # of a text of calls alone, so that a weak model comes to an end


class ToolCalls(Format):
    """A text with calls of functions, each of them written as

        <tool_call>
        {"name": NAME, "arguments": OBJECT}
        </tool_call>

    The arguments follow the schema of the function.
    """

    def __init__(
        self,
        functions: Mapping[str, Mapping[str, Any]],
        *,
        required: bool = False,
        most: int | None = None,
        ends: Sequence[str] = (),
    ):
        """Writes the grammar.

        Args:
            functions: for each name, the JSON schema of the arguments, an object.
            required: whether the text is calls alone, at least one of them and at most 16; otherwise it is any text,
                in which `<tool_call>` begins a call.
            most: the largest number of calls, 1 or None; the text ends after that one.
            ends: strings that may end a text of calls alone, as the model learned to end its replies.

        Raises:
            RequestError: there is no function, a name is none, or a schema is not one of an object.
        """
        require("functions", functions, Mapping, bool, "one function or more")
        require("most", most, (int, type(None)), lambda n: n in (1, None), "1 or None")
        rules = [
            f'f{i}: "{{\\"name\\": \\"{_checked(name)}\\", \\"arguments\\": " %json {_arguments(schema)} "}}"'
            for i, (name, schema) in enumerate(functions.items())
        ]
        called = f'"\\n{END}"'
        call = f'call: "{BEGIN}\\n" body {called}'
        if required:
            more = "" if most else f' ("\\n" call){{0,{MOST_CALLS - 1}}}'
            endings = " | ".join(json.dumps(end) for end in ends)
            start = f'start: " "? call{more}' + (f" ({endings})?" if endings else "")
        else:
            # A lazy rule ends as soon as it can, so no text goes on behind the words that begin a call.
            call = f'call: begin "\\n" body {called}\nbegin[lazy]: TEXT "{BEGIN}"\nTEXT: /(.|\\n)*/'
            start = "start: TEXT | call" if most else "start: call* TEXT"
        body = "body: " + " | ".join(f"f{i}" for i in range(len(rules)))
        self._set("tool_calls", "\n".join(["%llguidance {}", start, call, body, *rules]))


def _checked(name: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise RequestError(f"functions: got the name {shown(name)}, expected up to 64 of a-z, A-Z, 0-9, _ and -")
    return name


def _arguments(schema: Mapping[str, Any]) -> str:
    """The schema of a function's arguments, with options of the library that whoever wrote it cannot change."""
    text = JsonSchema(schema).source
    if schema.get("type", "object") != "object":
        raise RequestError(f"schema: got the type {shown(schema['type'])}, expected object, which holds the arguments")
    return json.dumps(json.loads(text) | {"type": "object", "x-guidance": json_options(False)})

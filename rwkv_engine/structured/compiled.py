"""Compiles a format for a tokenizer: once for all texts, within bounds of size, time and memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from rwkv_engine.errors import RequestError
from rwkv_engine.structured.divisors import require_small_divisors
from rwkv_engine.structured.formats import Format
from rwkv_engine.structured.matcher import Matcher
from rwkv_engine.structured.vocabulary import library, vocabulary
from rwkv_engine.text import Tokenizer

MOST_BYTES = 2**16  # of a source: larger ones take seconds to compile
# The library counts its work instead of the time. Each mask takes at most some 15 ms by these, and each text's lexer
# some 20 MB; the grammars of ordinary schemas stay far below.
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
WHITE_SPACE = r" |\n {0,16}"


class CompiledFormat:
    """A format for one tokenizer. Any number of texts may use it at a time, in any threads.

    Attributes:
        format: what was compiled.
    """

    def __init__(self, form: Format, root: Any, n_tokens: int):
        """`root`: the library's matcher at the beginning of a text; `n_tokens`: see `Matcher`."""
        self.format = form
        self._root, self._n_tokens = root, n_tokens

    def matcher(self) -> Matcher:
        """The state of one text, which has not begun."""
        return Matcher(self._root.deep_copy(), self._n_tokens)


@lru_cache(maxsize=128)
def compiled(tokenizer: Tokenizer, form: Format) -> CompiledFormat:
    """Compiles a format; the last 128 are kept.

    Raises:
        RequestError: the format is wrong, too large, too complex, cannot be met, or asks for what the library cannot
            guarantee. The message names the part.
        StructuredOutputError: the library is not installed.
    """
    found = library()
    if len(form.source) > MOST_BYTES:
        raise RequestError(f"{form.kind}: got {len(form.source)} characters, expected at most {MOST_BYTES}")
    try:
        require_small_divisors(form)
        grammar = _grammar(form)
        tokens = vocabulary(tokenizer, form.kind in ("json_schema", "tool_calls"))  # type: ignore[arg-type]  # it has a hash
        root = found.LLMatcher(tokens, grammar, log_level=0, limits=found.LLParserLimits(**LIMITS))
    except (ValueError, RecursionError) as error:
        raise _refused(form, str(error)) from error
    if root.is_error():
        raise _refused(form, root.get_error())
    return CompiledFormat(form, root, tokens.vocab_size)


def _grammar(form: Format) -> str:
    """The library's grammar of a format."""
    found = library()
    if form.kind == "json_schema":
        # As overrides, because the schema of a client could contain the library's own options.
        options = json_options(form.is_compact)
        return str(found.LLMatcher.grammar_from_json_schema(form.source, overrides=options))
    if form.kind == "tool_calls":
        return str(found.LLMatcher.grammar_from_lark(form.source))
    return str(found.grammar_from(form.kind, form.source))


def json_options(is_compact: bool) -> dict[str, object]:
    """The library's options for a JSON schema: to guarantee all of it, and the white space of `JsonSchema`."""
    options: dict[str, object] = {"lenient": False, "coerce_one_of": False}
    options |= {"item_separator": ",", "key_separator": ":", "whitespace_flexible": not is_compact}
    options["whitespace_pattern"] = None if is_compact else WHITE_SPACE
    return options


def _refused(form: Format, problem: str) -> RequestError:
    """The error for a format that cannot be compiled, from what the library says about it."""
    reason = " ".join(problem.split("<state>")[0].split("<grammar>")[0].split())
    if form.kind == "json_schema" and (keys := re.search(r"Unimplemented keys: (\[.*?\])", reason)):
        places = [place for place, key in _places(json.loads(form.source), "") if key in json.loads(keys[1])]
        reason = (
            f"cannot be guaranteed at {', '.join(places[:5]) or keys[1]}; leave it out, and check the answer for it"
        )
    return RequestError(f"{form.kind}: {reason[:500] or 'cannot be compiled'}")


def _places(schema: Any, path: str) -> Iterator[tuple[str, str]]:
    """The places of all keys, as pointers into the schema, and the keys."""
    items = schema.items() if isinstance(schema, dict) else enumerate(schema) if isinstance(schema, list) else ()
    for key, value in items:
        place = f"{path}/{key}"
        yield place, str(key)
        yield from _places(value, place)

"""Grammars that texts must follow, through llguidance.

model.generate("A user: ", allowed_tokens=Grammar.json_schema(model, schema))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from llguidance import LLMatcher

from rwkv_engine.checks import require, require_text
from rwkv_engine.errors import RequestError
from rwkv_engine.pipeline import RWKV
from rwkv_engine.structured.vocabulary import vocabulary_of

# One blank after commas and colons, as models mostly write JSON, and no other white space, which need not end.
_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT = {"type": "object"}


class Grammar:
    """What `allowed_tokens` may be: the form of a text, which any number of texts can follow at a time.

    A text ends where the form is complete and the model's end token is sampled, or nothing more may follow. A model
    whose tokenizer has no end token ends a text as soon as the form is complete.
    """

    def __init__(self, model: RWKV, grammar: str, name: str = "grammar"):
        """Compiles a grammar.

        Args:
            model: the model that generates the texts.
            grammar: in the variant of Lark's syntax that llguidance defines; its first rule is `start`.
            name: what messages call it.

        Raises:
            RequestError: the grammar is wrong or too large; the message says where.
            TokenizerError: the model has no tokenizer.
        """
        require_text(name, grammar)
        tokenizer = model.tokenizer
        self._vocabulary = vocabulary_of(cast(Any, tokenizer))
        self._n_vocab = model.config.n_vocab
        self._has_end = tokenizer.end_of_text is not None
        self._start = LLMatcher(self._vocabulary, grammar, log_level=0)
        if self._start.is_error():
            raise RequestError(f"{name}: {_on_one_line(self._start.get_error())}")

    @classmethod
    def json_schema(cls, model: RWKV, schema: Mapping[str, Any] | bool, name: str = "json_schema") -> Grammar:
        """JSON that is valid under a schema, on one line.

        Args:
            model: the model that generates the texts.
            schema: a JSON schema. Keywords that cannot be enforced are refused.
            name: what messages call it.

        Raises:
            RequestError: the schema is wrong, or has a part that cannot be enforced.
        """
        require(name, schema, (Mapping, bool), lambda _: True, "a JSON schema")
        try:
            text = json.dumps(schema if isinstance(schema, bool) else dict(schema))
            return cls(model, LLMatcher.grammar_from_json_schema(text, overrides=_JSON), name)
        except (ValueError, TypeError, RecursionError) as error:
            raise RequestError(f"{name}: {_on_one_line(str(error))}") from error

    @classmethod
    def json_object(cls, model: RWKV) -> Grammar:
        """Any JSON object."""
        return cls.json_schema(model, _ANY_OBJECT)

    @classmethod
    def regex(cls, model: RWKV, pattern: str, name: str = "regex") -> Grammar:
        """Texts that match a regular expression as a whole; there are no look-arounds and no back references.

        Raises:
            RequestError: the expression is wrong.
        """
        require_text(name, pattern)
        return cls(model, LLMatcher.grammar_from_regex(pattern), name)

    @classmethod
    def choice(cls, model: RWKV, choices: Sequence[str], name: str = "choice") -> Grammar:
        """One of several texts.

        Raises:
            RequestError: there are none, or one is empty.
        """
        require(name, choices, Sequence, lambda c: c and not isinstance(c, str), "a list of texts")
        for choice in choices:
            require(name, choice, str, len, "texts that are not empty")
            require_text(name, choice)
        return cls(model, LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices))), name)

    def begin(self) -> Matcher:
        """The function for one text, see `token_mask`."""
        return Matcher(self._start.deep_copy(), self._n_vocab, self._vocabulary.vocab_size, self._has_end)


class Matcher:
    """Says which tokens may follow in one text."""

    def __init__(self, matcher: LLMatcher, n_vocab: int, n_tokens: int, has_end: bool):
        self._matcher = matcher
        self._has_end = has_end
        self._n_read = 0
        # The tokenizer may have a token more than the model, or the model some that are padding.
        self._all_words = np.zeros(-(-max(n_tokens, n_vocab) // 32), dtype=np.int32)
        self._filled = self._all_words[: -(-n_tokens // 32)]
        self._words = self._all_words[: -(-n_vocab // 32)]

    def __call__(self, tokens: Sequence[int]) -> np.ndarray[Any, Any] | None:
        """A bit mask, or None where the text ends.

        Raises:
            RequestError: the grammar became too complex for its limits.
        """
        matcher = self._matcher
        matcher.consume_tokens(list(tokens[self._n_read :]))
        self._n_read = len(tokens)
        ends = matcher.is_stopped() or (matcher.is_accepting() and not self._has_end)
        if not ends:
            matcher.unsafe_compute_mask_ptr(self._filled.ctypes.data, self._filled.nbytes)
        if matcher.is_error():
            raise RequestError(f"the form of the text cannot be followed further: {_on_one_line(matcher.get_error())}")
        return None if ends else self._words


def _on_one_line(error: str) -> str:
    return " ".join(error.split())[:300]

"""A tokenizer's vocabulary as the library for grammars knows it: the bytes of every token."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any

from rwkv_engine.errors import RwkvError
from rwkv_engine.text import Tokenizer
from rwkv_engine.text.ids import padded


class StructuredOutputError(RwkvError):
    """The package that formats need is not installed."""


def library() -> ModuleType:
    """llguidance, which is imported at the first use.

    Raises:
        StructuredOutputError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise StructuredOutputError(
            f"formats of texts need {error.name}, which is not installed: pip install 'rwkv-engine[structured]'"
        ) from error
    return llguidance


class _Tokens:
    """What the library asks of a tokenizer; its names are the library's.

    The id that ends a text is one of our own after all others, so whichever tokens end a text can be told from it.
    """

    def __init__(self, tokenizer: Tokenizer):
        n_vocab = padded(tokenizer.n_vocab)  # what a model's vocabulary can be
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.n_vocab)]
        # No UTF-8 contains the byte 255, by which the library marks its own tokens. It ignores tokens without bytes.
        self.tokens = [b"" if b"\xff" in token else token for token in self.tokens]
        self.tokens += [b""] * (n_vocab - len(self.tokens)) + [b"<end>"]
        self.eos_token_id = n_vocab
        self.bos_token_id = None
        self.special_token_ids = [n_vocab]
        self._tokenizer = tokenizer
        self._single = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        """The ids of a text that a grammar prescribes."""
        data = text.encode() if isinstance(text, str) else text
        ids = self._tokenizer.encode_bytes(data)
        if b"".join(self.tokens[i] for i in ids) == data:
            return ids
        return [self._single[bytes([byte])] for byte in data]  # it contains the name of a special token


@lru_cache(maxsize=8)
def vocabulary(tokenizer: Tokenizer, is_json: bool) -> Any:
    """The library's tokenizer, which takes a tenth of a second to make.

    Args:
        tokenizer: ours.
        is_json: whether to prepare for the long strings of JSON, which makes its masks faster.
    """
    found = library()
    if is_json:
        plain = vocabulary(tokenizer, False)  # type: ignore[arg-type]  # it has a hash
        return plain.with_slices(found.LLTokenizer.json_slices())
    return found.LLTokenizer(found.TokenizerWrapper(_Tokens(tokenizer)))

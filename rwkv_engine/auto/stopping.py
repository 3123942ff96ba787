"""When a text ends: at a token, at a string, or when a caller's criteria say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.auto.options import Options
from rwkv_engine.auto.rwkv_tokenizer import RwkvTokenizer
from rwkv_engine.errors import RequestError

# (ids (R, T), scores) -> which rows end, (R,), or one answer for all; transformers' StoppingCriteria is one.
Criterion = Callable[[Tensor, Any], Any]


class Stopping:
    """What `Options` says of the end, for R texts."""

    def __init__(self, asked: Options, texts: Sequence[Tensor], tokenizer: Any, criteria: Sequence[Criterion]):
        """Before the first token.

        Args:
            asked: tokens and strings.
            texts: what each row has read, (T_i,).
            tokenizer: makes text of ids; needed for strings alone.
            criteria: what the caller says; called with all rows.

        Raises:
            RequestError: strings that are none, or no tokenizer for them.
        """
        self._ends = frozenset(asked.ends)
        self._criteria = criteria
        self._strings = [string.encode() for string in asked.strings]
        if self._strings and not isinstance(tokenizer, RwkvTokenizer):
            got = type(tokenizer).__name__
            raise RequestError(
                f"stop_strings: got tokenizer={got}, expected the one of AutoTokenizer.from_pretrained beside them"
            )
        self._token_bytes: Callable[[int], bytes] = tokenizer.token_bytes if self._strings else lambda token: b""
        # A string may begin in the prompt, as it may for transformers; it ends in a new token.
        self._data = [bytearray().join(map(self._token_bytes, text.tolist())) for text in texts]

    @property
    def is_possible(self) -> bool:
        """Whether a text may end before it has all tokens asked for."""
        return bool(self._ends or self._strings or self._criteria)

    def ended(self, new: Mapping[int, int], sequences: Tensor) -> set[int]:
        """The rows that end with the token they were just given.

        Args:
            new: a token for each row that has not ended.
            sequences: all ids so far, (R, T), for criteria.
        """
        ended = {row for row, token in new.items() if self._ends_with(row, token)}
        for criterion in self._criteria:
            answer = torch.as_tensor(criterion(sequences, None)).bool().cpu()
            ended |= {row for row in new if (answer[row] if answer.ndim else answer)}
        return ended

    def _ends_with(self, row: int, token: int) -> bool:
        if self._strings:
            data = self._data[row]
            before = len(data)
            data += self._token_bytes(token)
            if any(data.find(string, max(0, before - len(string) + 1)) >= 0 for string in self._strings):
                return True
        return token in self._ends

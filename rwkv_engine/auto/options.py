"""What `generate` is asked for, in the words of transformers: defaults, the model's own settings, the caller's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from rwkv_engine.auto.refused import refuse
from rwkv_engine.checks import require
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import SamplingParams

OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Options:
    """What of it is offered, with transformers' defaults.

    Attributes:
        max_new_tokens: at most so many tokens for each text.
        max_length: the same, the prompt included, if there is no `max_new_tokens`; 20 new ones if there is neither.
        min_new_tokens: so many at least, before one of `eos_token_id`.
        min_length: the same, the prompt included.
        do_sample: draw tokens; else the likeliest one is taken, and the next four are of no use.
        temperature, top_k, top_p, min_p: as in `SamplingParams`; `top_k` is 50 unless it is given.
        repetition_penalty: logits of tokens in the text are divided by it, or multiplied where they are below 0.
        num_return_sequences: so many texts for each prompt.
        eos_token_id: tokens that end a text, and are part of it.
        pad_token_id: fills up texts that end before others; the first of `eos_token_id` if it is not given.
        bos_token_id: the prompt where there is none.
        suppress_tokens: never written.
        stop_strings: texts that end one, with the token that completes them.
        return_dict_in_generate: a `Generated` instead of the tensor.

    Raises:
        RequestError: a value out of range.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = 50
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    suppress_tokens: Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    return_dict_in_generate: bool | None = None

    @classmethod
    def of(cls, models: Mapping[str, Any], config: object, given: Mapping[str, Any]) -> Options:
        """From the model's own settings, then a configuration, then the arguments of a call.

        Args:
            models: the words of a generation_config.json.
            config: a dictionary, or what has `to_dict`, as transformers' `GenerationConfig`; None for none.
            given: unlike the others' a None here counts, as none of what it names.

        Raises:
            RequestError: an argument that is unknown or not offered, or a value out of range.
        """
        values: dict[str, Any] = {}
        for layer in (models, _as_dict(config)):
            values |= {name: value for name, value in layer.items() if value is not None}
        values |= given
        names = [field.name for field in fields(cls)]
        for name, value in values.items():
            refuse(name, value, names)
        asked = cls(**{name: value for name, value in values.items() if name in names})
        unused = [name for name in OF_SAMPLING if given.get(name) is not None]
        if unused and not asked.do_sample:
            warnings.warn(f"generate: {', '.join(unused)} without do_sample=True have no effect", stacklevel=3)
        return asked

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", "num_return_sequences"):
            _require(name, getattr(self, name), Integral, 1, "an integer >= 1")
        for name in ("min_new_tokens", "min_length"):
            _require(name, getattr(self, name), Integral, 0, "an integer >= 0")
        require("repetition_penalty", self.penalty, Real, lambda x: x > 0, "a number > 0 (1.0 is off)")
        for name in ("eos_token_id", "suppress_tokens"):
            for token in _ids(getattr(self, name)):
                require(name, token, Integral, lambda x: not isinstance(x, bool), "token ids")
        for text in self.strings:
            require("stop_strings", text, str, len, "strings that are not empty")
        self.params(0)

    def params(self, seed: int | None) -> SamplingParams:
        """How a token is drawn from logits that are adjusted already."""
        if not self.do_sample:
            return SamplingParams(temperature=0, seed=seed)
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        return SamplingParams(
            temperature=temperature, top_k=self.top_k or 0, top_p=top_p, min_p=self.min_p or 0.0, seed=seed
        )

    def most(self, width: int) -> int:
        """New tokens at most, after prompts of `width`.

        Raises:
            RequestError: `max_length` leaves none.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return 20
        if self.max_length <= width:
            raise RequestError(
                f"max_length: got {self.max_length}, and the prompt has {width} tokens already; give max_new_tokens"
            )
        return self.max_length - width

    def least(self, width: int) -> int:
        """New tokens before the text may end."""
        return max(0, (self.min_length or 0) - width) if self.min_new_tokens is None else self.min_new_tokens

    @property
    def penalty(self) -> float:
        """For repetition; 1.0 for none."""
        return 1.0 if self.repetition_penalty is None else self.repetition_penalty

    @property
    def suppressed(self) -> list[int]:
        """Tokens that are never written."""
        return _ids(self.suppress_tokens)

    @property
    def strings(self) -> list[str]:
        """Texts that end one."""
        given = self.stop_strings or ()
        return [given] if isinstance(given, str) else list(given)

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text; there is none below 0."""
        return [token for token in _ids(self.eos_token_id) if token >= 0]

    @property
    def padding(self) -> int | None:
        """What fills up a text."""
        return next(iter(_ids(self.eos_token_id)), None) if self.pad_token_id is None else self.pad_token_id

    def check_vocabulary(self, n_vocab: int) -> None:
        """Refuses ids that a model does not have.

        Raises:
            RequestError: with the first one.
        """
        for name in ("eos_token_id", "suppress_tokens"):
            for token in _ids(getattr(self, name)):
                if token >= n_vocab:
                    raise RequestError(f"{name}: got {token}, expected ids below {n_vocab}, the vocabulary")


def _ids(given: Any) -> list[int]:
    """One id or several, as a list."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    if plain is None:
        return []
    return list(plain) if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain]


def _as_dict(config: Any) -> Mapping[str, Any]:
    if config is None or isinstance(config, Mapping):
        return config or {}
    if not hasattr(config, "to_dict"):
        raise RequestError(
            f"generation_config: got {type(config).__name__}, expected a dictionary or a GenerationConfig"
        )
    return config.to_dict()


def _require(name: str, value: Any, kind: type, least: int, expected: str) -> None:
    if value is not None:
        require(name, value, kind, lambda x: x >= least and not isinstance(x, bool), expected)

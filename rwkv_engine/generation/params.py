"""The parameters of sampling, which are checked when they are created."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, TypedDict

from rwkv_engine.checks import require, require_text, shown
from rwkv_engine.errors import RequestError
from rwkv_engine.structured import CompiledFormat, Format

COMPAT = ("rwkv",)
# What is added to logits may not be larger: a sum of many stays finite, as a 32-bit float too.
LARGEST = 1e30

AllowedTokens = Callable[[Sequence[int]], Any]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen.

    The steps are applied in this order: bias, ban and mask, penalties, temperature, top-k, top-p, min-p, one random
    draw.
    `compat="rwkv"` follows the order of the rwkv package, see `distribution.rwkv_package`.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token (the lowest id among equals).
        top_k: keeps only the k most likely tokens; 0 is off.
        top_p: of these, keeps the fewest most likely tokens whose probabilities sum to at least p; 1.0 is off.
        min_p: of these, keeps tokens that are at least p times as likely as the most likely one; 0.0 is off.
        presence_penalty: is subtracted from the logit of every token that the model has generated in this text.
        frequency_penalty: is subtracted from it once for each time that the model has generated the token.
        penalty_decay: with every further token, the count of an earlier one is multiplied by this; 1.0 is off.
        logit_bias: is added to the logits, by token id.
        banned_tokens: ids that are never generated.
        allowed_tokens: None; a function that says which tokens may follow, see `token_mask`; or a format of the
            text, see `structured`.
        seed: 64 bits; None chooses a random seed, so that every run differs.
        stop_tokens: ids that end the text; they are not part of it.
        stop: strings that end the text; they are not part of it.
        logprobs: None, or how many of the most likely tokens to report, with their log-probabilities, in addition to
            each generated token's own. They are those of the model, before all of the above.
        compat: None, or "rwkv" for the semantics of that package.
        drafts: how many tokens to guess ahead at a time, from what followed the same tokens before; 0 is off. Guesses
            make texts that repeat faster, where several tokens share a pass over the weights: on the CPU, with compiled
            kernels. They never change a text.

    Raises:
        RequestError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_tokens: Sequence[int] = ()
    allowed_tokens: AllowedTokens | Format | CompiledFormat | None = None
    seed: int | None = None
    stop_tokens: Sequence[int] = ()
    stop: Sequence[str] = ()
    logprobs: int | None = None
    compat: str | None = None
    drafts: int = 0

    def __post_init__(self) -> None:
        require("temperature", self.temperature, Real, lambda x: x >= 0 and _is_finite(x), "a number >= 0")
        require("top_k", self.top_k, Integral, lambda x: 0 <= x < 2**63, "an integer in [0, 2**63) (0 is off)")
        if not (self.compat and self.top_p == 0):  # which is greedy in the rwkv package
            require("top_p", self.top_p, Real, lambda x: 0 < x <= 1, "a number in (0, 1] (1.0 is off)")
        require("min_p", self.min_p, Real, lambda x: 0 <= x <= 1, "a number in [0, 1] (0 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            require(name, getattr(self, name), Real, _is_moderate, f"a number from -{LARGEST} to {LARGEST} (0 is off)")
        require("penalty_decay", self.penalty_decay, Real, lambda x: 0 <= x <= 1, "a number in [0, 1] (1.0 is off)")
        for token, bias in _mapping("logit_bias", self.logit_bias).items():
            require("logit_bias", token, Integral, lambda x: x >= 0, "token ids as keys")
            expected = f"numbers from -{LARGEST} to {LARGEST} (to ban a token, use banned_tokens)"
            require("logit_bias", bias, Real, _is_moderate, expected)
        for name in ("banned_tokens", "stop_tokens"):
            for token in _sequence(name, getattr(self, name), "token ids"):
                require(name, token, Integral, lambda x: x >= 0, "token ids")
        for text in _sequence("stop", self.stop, "strings"):
            require("stop", text, str, len, "strings that are not empty")
            require_text("stop", text)
        if self.allowed_tokens is not None:
            is_one = isinstance(self.allowed_tokens, (Format, CompiledFormat)) or callable(self.allowed_tokens)
            require(
                "allowed_tokens",
                self.allowed_tokens,
                object,
                lambda _: is_one,
                "a function of token ids, a format, or None",
            )
        if self.seed is not None:
            require("seed", self.seed, Integral, lambda x: 0 <= x < 2**64, "an integer in [0, 2**64) or None")
        if self.logprobs is not None:
            require("logprobs", self.logprobs, Integral, lambda x: x >= 0, "an integer >= 0 or None")
        if self.compat is not None:
            require("compat", self.compat, str, lambda x: x in COMPAT, f"None or one of {', '.join(COMPAT)}")
            if self.min_p:
                raise RequestError("min_p: the rwkv package has none; leave out min_p or compat='rwkv'")
        require("drafts", self.drafts, Integral, lambda x: x >= 0, "an integer >= 0 (0 is off)")

    @property
    def penalizes(self) -> bool:
        """Whether the tokens generated so far influence the next one."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def adjusts(self) -> bool:
        """Whether biases, bans or penalties change logits, or `compat` needs them in float64."""
        return bool(self.penalizes or self.logit_bias or self.banned_tokens or self.compat)


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`, as keyword arguments of functions that pass them on."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    penalty_decay: float
    logit_bias: Mapping[int, float]
    banned_tokens: Sequence[int]
    allowed_tokens: AllowedTokens | Format | CompiledFormat | None
    seed: int | None
    stop_tokens: Sequence[int]
    stop: Sequence[str]
    logprobs: int | None
    compat: str | None
    drafts: int


class TextOptions(SamplingOptions, total=False):
    """The options of a text: how its tokens are sampled, and whose it is."""

    owner: str


def _is_finite(number: Real) -> bool:
    """Whether a number is finite as a 64-bit float, which sampling computes with."""
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_moderate(number: float) -> bool:
    """Whether a number is within the limits, which NaN is not."""
    return -LARGEST <= number <= LARGEST


def _sequence(name: str, got: Any, expected: str) -> Sequence[Any]:
    if isinstance(got, (str, bytes)) or not isinstance(got, Sequence | frozenset | set):
        raise RequestError(f"{name}: got {shown(got)}, expected a list of {expected}")
    return got  # type: ignore[return-value]


def _mapping(name: str, got: Any) -> Mapping[Any, Any]:
    if not isinstance(got, Mapping):
        raise RequestError(f"{name}: got {shown(got)}, expected a dictionary of token ids and numbers")
    return got

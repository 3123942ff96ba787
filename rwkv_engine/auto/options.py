"""The options of `generate`, under transformers' names: those that are supported, and what is said of the others."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from rwkv_engine.checks import require
from rwkv_engine.errors import RequestError
from rwkv_engine.generation import SamplingParams

OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
# Options of transformers that are not supported, with the value that turns them off; None turns off any option.
OFF: dict[str, Any] = {
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "token_healing": False,
    "typical_p": 1.0,
    "use_mtp": False,
}
# Options that change no output, whatever their value: of beams, assistants or compilers, or notes about their file.
WITHOUT_EFFECT = frozenset(
    [
        "_commit_hash",
        "_from_model_config",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "compile_config",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "is_assistant",
        "length_penalty",
        "low_memory",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "renormalize_logits",
        "synced_gpus",
        "target_lookbehind",
        "transformers_version",
        "trust_remote_code",
        "use_cache",
    ]
)


@dataclass(frozen=True)
class Options:
    """The supported options, with transformers' defaults.

    Attributes:
        max_new_tokens: generate at most this many tokens per text.
        max_length: the same limit with the prompt included; used if `max_new_tokens` is None. Without either, 20.
        min_new_tokens: generate at least this many tokens before one of `eos_token_id`.
        min_length: the same with the prompt included.
        do_sample: sample tokens; otherwise take the most likely one and ignore the next four options.
        temperature, top_k, top_p, min_p: as in `SamplingParams`; `top_k` is 50 by default.
        repetition_penalty: divides the positive logits of tokens in the text, and multiplies the negative ones.
        num_return_sequences: how many texts to generate for each prompt.
        eos_token_id: a token or several that end a text; they are part of it.
        pad_token_id: fills up texts that end before others; by default the first of `eos_token_id`.
        bos_token_id: the prompt, if none is given.
        suppress_tokens: tokens that are never generated.
        stop_strings: strings that end a text, together with the token that completes them.
        return_dict_in_generate: return a `Generated` instead of the tensor.

    Raises:
        RequestError: a value is out of range.
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
        """Merges the model's settings, a configuration, and the arguments of a call; later ones win.

        Args:
            models: the contents of a generation_config.json.
            config: a dictionary, or an object with `to_dict` such as transformers' `GenerationConfig`; may be None.
            given: the arguments. A None here overrides the other two; a None in those does not.

        Raises:
            RequestError: an option is unknown or not supported, or a value is out of range.
        """
        values: dict[str, Any] = {}
        for layer in (models, _as_dict(config)):
            values |= {name: value for name, value in layer.items() if value is not None}
        values |= given
        names = [field.name for field in fields(cls)]
        for name, value in values.items():
            _check_supported(name, value, names)
        asked = cls(**{name: value for name, value in values.items() if name in names})
        unused = [name for name in OF_SAMPLING if given.get(name) is not None]
        if unused and not asked.do_sample:
            warnings.warn(f"generate: {', '.join(unused)} have no effect without do_sample=True", stacklevel=3)
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
        """How tokens are sampled from scores that `writing.Scores` has adjusted already."""
        if not self.do_sample:
            return SamplingParams(temperature=0, seed=seed)
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        return SamplingParams(
            temperature=temperature, top_k=self.top_k or 0, top_p=top_p, min_p=self.min_p or 0.0, seed=seed
        )

    def most(self, width: int) -> int:
        """How many tokens may be generated after prompts of `width` tokens.

        Raises:
            RequestError: `max_length` leaves room for none.
        """
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.max_length is None:
            return 20
        if self.max_length <= width:
            raise RequestError(
                f"max_length: got {self.max_length}, but the prompt alone has {width} tokens; pass max_new_tokens"
            )
        return self.max_length - width

    def least(self, width: int) -> int:
        """How many tokens must be generated before a token may end the text."""
        return max(0, (self.min_length or 0) - width) if self.min_new_tokens is None else self.min_new_tokens

    @property
    def penalty(self) -> float:
        """The repetition penalty; 1.0 changes nothing."""
        return 1.0 if self.repetition_penalty is None else self.repetition_penalty

    @property
    def suppressed(self) -> list[int]:
        """Tokens that are never generated."""
        return _ids(self.suppress_tokens)

    @property
    def strings(self) -> list[str]:
        """Strings that end a text."""
        given = self.stop_strings or ()
        return [given] if isinstance(given, str) else list(given)

    @property
    def ends(self) -> list[int]:
        """Tokens that end a text; negative ids, which mean none, are left out."""
        return [token for token in _ids(self.eos_token_id) if token >= 0]

    @property
    def padding(self) -> int | None:
        """The token that fills up texts, if it is known."""
        return next(iter(_ids(self.eos_token_id)), None) if self.pad_token_id is None else self.pad_token_id

    def check_vocabulary(self, n_vocab: int) -> None:
        """Checks that the vocabulary has all tokens named.

        Raises:
            RequestError: it names the first one that is missing.
        """
        for name in ("eos_token_id", "suppress_tokens"):
            for token in _ids(getattr(self, name)):
                if token >= n_vocab:
                    raise RequestError(f"{name}: got {token}, expected ids below {n_vocab}, the size of the vocabulary")


def _check_supported(name: str, value: Any, supported: Sequence[str]) -> None:
    """Refuses an option that would change the output and cannot; none is dropped silently.

    Raises:
        RequestError: the option is not supported with this value.
    """
    if name in supported or name in WITHOUT_EFFECT:
        return
    close = difflib.get_close_matches(name, supported, 1, cutoff=0.75)
    is_off = value is None or (name in OFF and value == OFF[name])
    if is_off and (name in OFF or not close):  # max_new_token=None may be a slip, assistant_model=None asks for nothing
        return
    shown = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
    hint = f"did you mean {close[0]}?" if close else f"leave it out; supported are {', '.join(supported)}"
    raise RequestError(f"generate: {name}={shown} is not supported; {hint}")


def _ids(given: Any) -> list[int]:
    """A list of the one id or the several ids that are given."""
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

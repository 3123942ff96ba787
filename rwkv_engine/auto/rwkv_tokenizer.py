"""A tokenizer with transformers' interface, over one of `rwkv_engine.text`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkv_engine.auto.fitting import Fitting
from rwkv_engine.auto.outputs import BatchEncoding, in_format
from rwkv_engine.auto.vocabulary import Vocabulary, save
from rwkv_engine.checks import shown
from rwkv_engine.errors import RequestError, TokenizerError
from rwkv_engine.text import Tokenizer

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class _Special:
    """A special token as an attribute, by name (`eos_token`) or by id (`eos_token_id`); None if there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._is_id = name.endswith("_id")
        self._key = name.removesuffix("_id")

    def __get__(self, tokenizer: RwkvTokenizer | None, owner: type) -> Any:
        if tokenizer is None:
            return self
        token = tokenizer.special.get(self._key)
        return token if token is None or self._is_id else tokenizer.convert_ids_to_tokens(token)

    def __set__(self, tokenizer: RwkvTokenizer, value: str | int | None) -> None:
        tokenizer.special[self._key] = None if value is None else tokenizer.known(self._key, value)


class RwkvTokenizer:
    """Converts text to ids and back; made by `AutoTokenizer.from_pretrained`.

    Nothing is added to a text, because RWKV-4 models were trained without tokens that begin or end a prompt.

    Attributes:
        tokenizer: the tokenizer of `rwkv_engine.text`.
        special: ids of `bos_token`, `eos_token`, `unk_token` and `pad_token`; read and set them by these attributes, or
            as ids by `eos_token_id` and so on.
        padding_side, truncation_side: "left" or "right".
        model_max_length: the `max_length` of calls that give none; None for no limit.
    """

    bos_token, eos_token, unk_token, pad_token = _Special(), _Special(), _Special(), _Special()
    bos_token_id, eos_token_id, unk_token_id, pad_token_id = _Special(), _Special(), _Special(), _Special()

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: Mapping[str, str | int | None] | None = None,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_max_length: int | None = None,
    ):
        """`special`: tokens by attribute name; by default the end of text, and for padding `<|padding|>`, if it exists.

        Raises:
            TokenizerError: the vocabulary lacks one of these tokens.
            RequestError: a value is out of range.
        """
        self.tokenizer = tokenizer
        self._vocabulary = Vocabulary.of(tokenizer)
        end, padding = tokenizer.end_of_text, self._vocabulary.ids.get("<|padding|>")
        self.special: dict[str, int | None] = {**dict.fromkeys(SPECIAL, end), "pad_token": padding}
        for name, value in (special or {}).items():
            setattr(self, name, value)
        Fitting(False, False, model_max_length, padding_side, truncation_side)  # checks them
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_max_length = model_max_length

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        add_special_tokens: bool = True,
    ) -> BatchEncoding:
        """Encodes one text or several.

        Args:
            text: one text or several; special tokens in it are recognised.
            padding, truncation, max_length: see `Fitting`.
            padding_side: overrides that of the tokenizer.
            return_tensors: "pt" for int64 tensors (B, T), "np" for arrays; None for lists, or for one text a list.
            return_attention_mask: return `attention_mask` too, 1 for tokens of the text and 0 for padding.
            add_special_tokens: has no effect.

        Returns:
            `input_ids` and `attention_mask`.

        Raises:
            RequestError: the argument is not text, the texts differ in length and so make no tensor, or a value is out
                of range.
            TokenizerError: padding was asked for, but there is no padding token.
        """
        if max_length is None and (truncation is not None or padding is not False):
            max_length = self.model_max_length
        fit = Fitting(padding, truncation, max_length, padding_side or self.padding_side, self.truncation_side)
        pad = self.special["pad_token"]
        if fit.pads and pad is None:
            raise TokenizerError(
                "padding: this tokenizer has no padding token; choose one: tokenizer.pad_token = tokenizer.eos_token,"
                " or tokenizer.pad_token_id = 0 (any token will do, because the attention mask marks padding)"
            )
        several = isinstance(text, list | tuple)
        rows = [fit.cut(self._encode(one)) for one in (text if several else [text])]
        width = fit.width(rows)
        lists = {"input_ids": [fit.filled(row, width, pad or 0) for row in rows]}
        if return_attention_mask:
            lists["attention_mask"] = [fit.filled([1] * len(row), width, 0) for row in rows]
        if not several and return_tensors is None:
            return BatchEncoding({name: values[0] for name, values in lists.items()})
        return BatchEncoding({name: in_format(values, return_tensors, name) for name, values in lists.items()})

    def encode(self, text: str, **options: Any) -> Any:
        """The `input_ids` of a text, as a list unless `return_tensors` is given; options as for a call."""
        return self(text, **options)["input_ids"]

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Converts an id, a list, a tensor or an array of ids to text; several rows give a list of texts.

        Args:
            token_ids: ids beyond the tokenizer's vocabulary, which a padded model may have, give no text.
            skip_special_tokens: leave special tokens out instead of writing their names.
            clean_up_tokenization_spaces: has no effect; spaces stay as they are.

        Raises:
            RequestError: an id is below 0, or is not an integer.
        """
        ids = _plain(token_ids)
        if isinstance(ids, int):
            ids = [ids]
        if ids and not isinstance(ids[0], int):
            return [self.decode(row, skip_special_tokens) for row in ids]
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in ids).decode(errors="replace")

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The texts of several rows, see `decode`."""
        texts = self.decode(sequences, skip_special_tokens, **options)
        return [texts] if isinstance(texts, str) else texts

    def token_bytes(
        self, token: int, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> bytes:
        """The bytes of one token, which may be part of a character; for a special token those of its name."""
        if token < 0:
            raise RequestError(f"decode: got the id {token}, expected ids >= 0; remove masked labels (-100) first")
        if token >= self.tokenizer.n_vocab:
            return b""
        if token in self._vocabulary.special:
            return b"" if skip_special_tokens else str(self._vocabulary.names[token]).encode()
        return self.tokenizer.token_bytes(token)

    def tokenize(self, text: str) -> list[str]:
        """The names of a text's tokens."""
        return self.convert_ids_to_tokens(self._encode(text))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The name of an id, or None if it has none; several ids give a list."""
        ids, names = _plain(ids), self._vocabulary.names
        if isinstance(ids, int):
            return names[ids] if 0 <= ids < len(names) else None
        skipped = self.all_special_ids if skip_special_tokens else ()
        return [self.convert_ids_to_tokens(i) for i in ids if i not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a name, or that of `unk_token` if it is unknown; several names give a list."""
        if isinstance(tokens, str):
            return self._vocabulary.ids.get(tokens, self.special["unk_token"])
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def known(self, what: str, value: str | int) -> int:
        """The id of a token given by name or by id.

        Raises:
            TokenizerError: the token is not in the vocabulary.
        """
        token = value if isinstance(value, int) else self._vocabulary.ids.get(value)
        if token is None or self.convert_ids_to_tokens(token) is None:
            raise TokenizerError(
                f"{what}: got {value!r}, expected one of the {len(self)} tokens of {self.tokenizer.name}, because the"
                " model has no others; for padding use the eos_token"
            )
        return token

    @property
    def vocab_size(self) -> int:
        """The number of tokens without added ones; `len(tokenizer)` counts all."""
        return self._vocabulary.n_base

    def __len__(self) -> int:
        return len(self._vocabulary.ids)

    def get_vocab(self) -> dict[str, int]:
        """A dictionary from names to ids."""
        return dict(self._vocabulary.ids)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Those of `bos_token`, `eos_token`, `unk_token` and `pad_token` that are set."""
        return {name: self.convert_ids_to_tokens(token) for name, token in self.special.items() if token is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of the special tokens that are set."""
        return list(dict.fromkeys(token for token in self.special.values() if token is not None))

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Writes `tokenizer.json` (or a World vocabulary) and `tokenizer_config.json`, which transformers reads too.

        Returns:
            The paths written.

        Raises:
            RequestError: the files cannot be written.
        """
        settings: dict[str, Any] = {**self.special_tokens_map}
        settings |= {"padding_side": self.padding_side, "truncation_side": self.truncation_side}
        if self.model_max_length is not None:
            settings["model_max_length"] = self.model_max_length
        return save(self.tokenizer, settings, Path(save_directory))

    def _encode(self, text: Any) -> list[int]:
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise RequestError(f"text: got {text!r}, expected a string or a list of strings: {error}") from error
        return self.tokenizer.encode(text)


def _plain(ids: Any) -> Any:
    """Converts tensors and arrays of ids to Python integers and lists."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(ids, (str, bytes)) or not isinstance(ids, (int, Iterable)):
        raise RequestError(f"token_ids: got {shown(ids)}, expected integer token ids")
    return ids if isinstance(ids, int) else [_plain(i) for i in ids]

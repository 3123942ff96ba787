"""The pipeline of the `rwkv` package; this module has the name that it has there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_engine.checks import require, require_ids, require_text
from rwkv_engine.compat.sampling import as_logits, draw, draw_exactly
from rwkv_engine.compat.vocabulary import load_vocabulary
from rwkv_engine.errors import RequestError
from rwkv_engine.text.ids import checked_ids

REPLACEMENT = "\ufffd"
UNCOUNTED = " \t0123456789"


class PIPELINE_ARGS:
    """Options of `PIPELINE.generate`. Attributes may be changed later; no two objects share a list.

    Attributes:
        temperature, top_p, top_k: as for `PIPELINE.sample_logits`.
        alpha_presence: subtracted from the logit of every token generated so far.
        alpha_frequency: subtracted once for each time the token was generated, except for white space and digits.
        alpha_decay: each occurrence counts less by this factor with every token generated after it.
        token_ban: token ids that are never sampled.
        token_stop: token ids that end the text; they are not part of it.
        chunk_len: number of tokens of the prompt that are processed at once.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_p: float = 0.85,
        top_k: int = 0,
        alpha_frequency: float = 0.2,
        alpha_presence: float = 0.2,
        alpha_decay: float = 0.996,
        token_ban: Sequence[int] | None = None,
        token_stop: Sequence[int] | None = None,
        chunk_len: int = 256,
    ):
        self.temperature = temperature
        self.top_p = top_p
        self.top_k = top_k
        self.alpha_frequency = alpha_frequency
        self.alpha_presence = alpha_presence
        self.alpha_decay = alpha_decay
        self.token_ban = [] if token_ban is None else token_ban
        self.token_stop = [] if token_stop is None else token_stop
        self.chunk_len = chunk_len


class PIPELINE:
    """Generates text, with the package's parameters, defaults and order of sampling steps.

    Top-p is applied to the probabilities at temperature 1, only generated tokens are penalised, and the frequency
    penalty does not count white space and digits. These details of the package are corrected, unless `exact`:

    - `top_p=1` keeps all tokens. In the package, the float32 sum of all probabilities is often not exactly 1, and then
      only the most likely token is kept.
    - Of equally likely tokens at the threshold of top-p, only as many are kept as are needed, not all of them. With a
      temperature or a `top_p` of 0, the most likely token with the lowest id is taken, without a random number.
    - A text that ends within a multi-byte character ends in U+FFFD, and bytes that are not UTF-8 do not delay the text
      after them. In the package the incomplete character, or everything after such a byte, is lost.
    - A state of RWKV-4 passed to `generate` is the one after the whole text. In the package it is the one before the
      last token if `token_count` ended the text. A state of RWKV-7 stays as it is, here and in the package.
    - World text is decoded as far as it is UTF-8, and id 0 is not an error.

    With `exact`, all of this except for id 0 is as in the package: the same logits and the same seed (of NumPy for a
    model on the CPU, of torch for one on a GPU) give the same tokens. With `exact` and `top_p=1`, the last bits of the
    logits decide whether all tokens are kept or one, and these differ between engines. In both modes an empty `ctx`, a
    token outside the vocabulary, a vocabulary of another model and logits that are not finite raise an error.

    Attributes:
        model: a `compat.RWKV`, or an object with the same `forward`.
        tokenizer: a tokenizer of the `tokenizers` library, of the World vocabulary, or of tiktoken.
        exact: whether sampling and decoding are exactly those of the package.
    """

    def __init__(self, model: Any, WORD_NAME: str | Path, exact: bool = False):
        """Reads the vocabulary.

        Args:
            model: a `compat.RWKV`, or an object with the same `forward`.
            WORD_NAME: the path of a tokenizer file, such as `20B_tokenizer.json`; `rwkv_vocab_v20230424` for World
                models; or `cl100k_base`, which needs the package tiktoken.
            exact: sample and decode exactly as the package does.

        Raises:
            TokenizerError: the vocabulary cannot be found or read, or does not fit the model.
        """
        self.model = model
        self.exact = exact
        args = getattr(model, "args", None)
        self._vocabulary = load_vocabulary(WORD_NAME, Path(getattr(args, "MODEL_NAME", "")).parent, exact)
        self.tokenizer = self._vocabulary.tokenizer
        if n_vocab := getattr(args, "vocab_size", None):
            self._vocabulary.check_fits(n_vocab)

    def refine_context(self, context: str) -> str:
        """Removes blank lines, and white space around lines, and puts a newline before each line."""
        return "\n" + "\n".join(line.strip() for line in context.split("\n") if line.strip())

    def encode(self, x: str) -> list[int]:
        """The token ids of a text.

        Raises:
            RequestError: `x` is not a string that UTF-8 can encode.
        """
        require_text("x", x)
        return self._vocabulary.encode(x)

    def decode(self, x: list[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            RequestError: an id is outside the vocabulary.
        """
        return self._vocabulary.decode(checked_ids(x, self._vocabulary.n_vocab))

    def sample_logits(self, logits: Tensor, temperature: float = 1.0, top_p: float = 0.85, top_k: int = 0) -> int:
        """Samples one token id.

        Args:
            logits: (V,), -inf where a token is banned; a tensor or, other than in the package, a NumPy array.
            temperature: 0 takes the most likely token.
            top_p: keeps the fewest most likely tokens whose probabilities sum to it; 0 takes the most likely one.
            top_k: of these, keeps the k most likely ones; 0 is off.

        Raises:
            RequestError: a value is out of range, or there is no token to sample.
        """
        return (draw_exactly if self.exact else draw)(as_logits(logits), temperature, top_p, int(top_k))

    def generate(
        self,
        ctx: str,
        token_count: int = 100,
        args: PIPELINE_ARGS | None = None,
        callback: Callable[[str], Any] | None = None,
        state: list[Tensor] | None = None,
    ) -> str:
        """Generates a continuation of a text and returns it, without `ctx`.

        Args:
            ctx: the text to continue.
            token_count: the maximum number of tokens to generate.
            args: the options; by default `PIPELINE_ARGS()`.
            callback: called with each piece of text, which consists of complete characters.
            state: the state after the text before `ctx`; for RWKV-4 its items are replaced by the state after the
                generated text. None if there is no text before.

        Raises:
            RequestError: `ctx` has no tokens, or an argument is out of range.
        """
        args = args or PIPELINE_ARGS()
        require("token_count", token_count, Integral, lambda n: n >= 0, "an integer >= 0")
        require("chunk_len", args.chunk_len, Integral, lambda n: n >= 1, "an integer >= 1")
        unread, given = self.encode(ctx), state
        if not unread:
            raise RequestError("ctx: has no tokens, expected at least one; to start a new text, use '\\n'")
        counts: dict[int, float] = {}
        pieces: list[str] = []
        held: list[int] = []  # tokens that may end inside a character

        def release(text: str) -> None:
            held.clear()
            pieces.append(text)
            if callback:
                callback(text)

        for _ in range(token_count):
            while unread:
                logits, state = self.model.forward(unread[: args.chunk_len], state)
                unread = unread[args.chunk_len :]
            _penalize(logits, counts, args)
            token = self.sample_logits(logits, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k)
            if token in args.token_stop:
                break
            for seen in counts:
                counts[seen] *= args.alpha_decay
            counts[token] = counts.get(token, 0.0) + (self.decode([token]) not in UNCOUNTED)
            unread = [token]
            held.append(token)
            text = self.decode(held)
            if not (REPLACEMENT in text if self.exact else text.endswith(REPLACEMENT)):
                release(text)
        if not self.exact:
            if held:
                release(self.decode(held))
            # Only a list whose items the model replaces can be brought up to date.
            if unread and given is not None and given is state and token_count:
                self.model.forward(unread, given)
        return "".join(pieces)


def _penalize(logits: Tensor, counts: dict[int, float], args: PIPELINE_ARGS) -> None:
    """Changes the logits (V,) of what is banned and of what was written, in their own precision."""
    banned = require_ids("token_ban", args.token_ban, len(logits), "the model's vocabulary")
    logits[torch.tensor(banned, dtype=torch.int64, device=logits.device)] = -torch.inf
    seen = torch.tensor(list(counts), dtype=torch.int64, device=logits.device)
    taken = [args.alpha_presence + count * args.alpha_frequency for count in counts.values()]
    logits[seen] -= torch.tensor(taken, dtype=logits.dtype, device=logits.device)

"""The `rwkv` package's pipeline; the module is named as it is there."""

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
    """How `PIPELINE.generate` writes. Any attribute may be changed later; no two objects share a list.

    Attributes:
        temperature, top_p, top_k: as for `PIPELINE.sample_logits`.
        alpha_presence: taken from the logit of every token written so far.
        alpha_frequency: taken from it for each time it was written; blanks and digits are not counted.
        alpha_decay: by which such a count shrinks with every token after it.
        token_ban: ids that are never drawn.
        token_stop: ids that end the text; they are no part of it.
        chunk_len: tokens of the prompt that are read at once.
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
    """Text in, text out, with the package's parameters, their defaults and their meaning: top-p looks at probabilities
    before the temperature, only what was written is penalised, and blanks and digits are not counted.

    Put right, unless `exact`:

    - `top_p=1` is off. There the float32 sum of all probabilities often misses 1, and the likeliest token is taken.
    - Of equally likely tokens at the edge of top-p only as many stay as it takes, not all of them. A temperature or a
      `top_p` of 0 takes the likeliest token, the one with the lowest id among equals, and draws nothing.
    - A text that ends inside a character ends in U+FFFD, and bytes that are no UTF-8 hold back nothing after them.
      There the end is lost, or everything from such a byte on.
    - A state given to `generate` has read all of the text when it returns. There the last token is missing, if it was
      the number of tokens that ended the text.
    - World text decodes as far as it is UTF-8, and id 0 is no error.

    With `exact` all that is as in the package, but for id 0: after the same seed (of NumPy for a model on the CPU, of
    torch for one on a GPU) the same logits give the same tokens. With a `top_p` of 1, whether all tokens stay or one is
    decided there by the last bits of the logits, in which no two engines agree. Either way an empty `ctx`, a token
    outside the vocabulary, a vocabulary that is not the model's and logits that are no numbers are errors that say so.

    Attributes:
        model: with the `forward` of a `compat.RWKV`.
        tokenizer: of the `tokenizers` library, or what has the World vocabulary, or tiktoken's.
        exact: whether the package's ways are kept.
    """

    def __init__(self, model: Any, WORD_NAME: str | Path, exact: bool = False):
        """Reads the vocabulary.

        Args:
            model: a `compat.RWKV`, or whatever has its `forward`.
            WORD_NAME: `20B_tokenizer.json`, or another file's path; `rwkv_vocab_v20230424` for World models;
                `cl100k_base`, with the package tiktoken.
            exact: keep the package's ways.

        Raises:
            TokenizerError: it cannot be found or read, or is not the model's.
        """
        self.model = model
        self.exact = exact
        args = getattr(model, "args", None)
        self._vocabulary = load_vocabulary(WORD_NAME, Path(getattr(args, "MODEL_NAME", "")).parent, exact)
        self.tokenizer = self._vocabulary.tokenizer
        if n_vocab := getattr(args, "vocab_size", None):
            self._vocabulary.check_fits(n_vocab)

    def refine_context(self, context: str) -> str:
        """The lines of a text that are not blank, without blanks around them, each after a newline."""
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
        """Continues a text; returns the continuation without `ctx`.

        Args:
            ctx: the beginning, or what comes after `state`.
            token_count: at most so many tokens.
            args: how; by default `PIPELINE_ARGS()`.
            callback: called with each piece of text as it comes, none of them half a character.
            state: what came before `ctx`; it is replaced by the state after the text. None for nothing.

        Raises:
            RequestError: `ctx` has no tokens, or a value out of range.
        """
        args = args or PIPELINE_ARGS()
        require("token_count", token_count, Integral, lambda n: n >= 0, "an integer >= 0")
        require("chunk_len", args.chunk_len, Integral, lambda n: n >= 1, "an integer >= 1")
        unread, given = self.encode(ctx), state
        if not unread:
            raise RequestError("ctx: has no tokens, and there must be something to read; a text may begin with '\\n'")
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
            if unread and given is not None and token_count:
                self.model.forward(unread, given)
        return "".join(pieces)


def _penalize(logits: Tensor, counts: dict[int, float], args: PIPELINE_ARGS) -> None:
    """Changes the logits (V,) of what is banned and of what was written, in their own precision."""
    banned = require_ids("token_ban", args.token_ban, len(logits), "the model's vocabulary")
    logits[torch.tensor(banned, dtype=torch.int64, device=logits.device)] = -torch.inf
    seen = torch.tensor(list(counts), dtype=torch.int64, device=logits.device)
    taken = [args.alpha_presence + count * args.alpha_frequency for count in counts.values()]
    logits[seen] -= torch.tensor(taken, dtype=logits.dtype, device=logits.device)

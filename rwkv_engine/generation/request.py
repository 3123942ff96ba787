"""One text for a scheduler to generate, as token ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

from torch import Tensor

from rwkv_engine.checks import require, require_text
from rwkv_engine.core.state import State
from rwkv_engine.errors import RequestError
from rwkv_engine.generation.drafts import Drafts
from rwkv_engine.generation.logprob import Logprob
from rwkv_engine.generation.params import AllowedTokens
from rwkv_engine.generation.sampling import History, Sampler
from rwkv_engine.ops.philox_uniform import as_int64
from rwkv_engine.structured import CompiledFormat, Format, Matcher


class Request:
    """A prompt, and how to continue it; later the tokens that were generated.

    A scheduler changes its attributes while it steps, in whichever thread does that. A subclass may override
    `adjusts`, `adjusted`, `accept` `mark` and `end`, which are called there.

    Attributes:
        prompt: the ids of the prompt.
        sampler: samples the tokens.
        max_new_tokens: the largest number of tokens to generate.
        sample: the index of this text among the samples of one prompt; with one seed, each gives a different text.
        key: the seed and the sample as `ops.philox_uniform` takes them.
        is_added: whether a scheduler has accepted it, which happens once.
        wanted: the number of tokens at which to pause; who wants more raises it and waits. Infinity by default.
        is_watched: whether somebody reads the tokens as they come; if not, only the speed of all texts counts.
        tokens: the ids generated so far.
        logprobs: their log-probabilities, if the parameters ask for them.
        finish_reason: "stop" (a stop token, `accept` refused to continue, or the format is complete), "length"
            (`max_new_tokens`), "aborted", "error", and None before the end.
        error: why the request failed; None unless `finish_reason` is "error".
        state: the state after the prompt and the tokens except those in `unread`; None for the initial one, while a
            slot contains it, and if a step failed half-way.
        owner: whose text it is: only prompts of the same owner share states that a cache keeps.
        uses_cache: whether a cache may be asked for the prompt, and may keep states of this text.
        n_cached: the number of tokens of the prompt that were not read, because a cache had the state after them.
        wants_state: whether `mark` is called, and the prompt is read even if no token is to be generated.
        is_whole: whether nothing was before the prompt.
        edges: the numbers of tokens of the prompt after which a cache is still to be given the state.
        allowed: what restricts its tokens: a function, or where this text stands in its format; None for nothing.
        unread: the ids that the state does not include yet: what is left of the prompt, or the last token, unless a
            stop token followed it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        max_new_tokens: int,
        state: State | None = None,
        sample: int = 0,
        owner: str = "",
    ):
        """Checks the arguments.

        Args:
            prompt: the ids of the prompt, at least one.
            sampler: samples the tokens.
            max_new_tokens: the largest number of tokens, at least 0.
            state: the state of one sequence, after the text before the prompt; None if there is none.
            sample: the index of this text among the samples of one prompt.
            owner: whose text it is, see `StateCache`.

        Raises:
            RequestError: the prompt is empty, or a value is out of range.
        """
        require("max_new_tokens", max_new_tokens, Integral, lambda n: n >= 0, "an integer >= 0")
        require("sample", sample, Integral, lambda n: 0 <= n < 2**64, "an integer in [0, 2**64)")
        require("state", state, (State, type(None)), lambda _: True, "a State that a call returned, or None")
        require_text("owner", owner)
        if not prompt:
            raise RequestError("the prompt has no tokens, expected at least one")
        self.prompt = tuple(prompt)
        self.sampler = sampler
        self.max_new_tokens = max_new_tokens
        self.sample = sample
        self.key = as_int64(sampler.seed), as_int64(sample)
        self.is_added = False
        self.wanted = math.inf
        self.is_watched = True
        self.tokens: list[int] = []
        self.logprobs: list[Logprob] = []
        self.finish_reason: str | None = None
        self.error: BaseException | None = None
        self.state = state
        self.is_whole = state is None
        self.owner = owner
        self.uses_cache = True
        self.n_cached = 0
        self.wants_state = False
        self.edges: Sequence[int] = ()
        self.begin = state  # until the prompt is read
        self.unread: Sequence[int] = self.prompt
        self.history: History | None = None  # for penalties; made with the first logits
        self.drafts: Drafts | None = None  # made with the first draft
        allowed = sampler.params.allowed_tokens
        if isinstance(allowed, Format):
            raise RequestError(
                f"allowed_tokens: got a {type(allowed).__name__}, expected structured.compiled(tokenizer, it)"
            )
        self.allowed: AllowedTokens | Matcher | None = (
            allowed.matcher() if isinstance(allowed, CompiledFormat) else allowed
        )
        self._before = 0 if state is None else int(state.position.sum())  # of one sequence, as `add` checks

    @property
    def position(self) -> int:
        """The number of tokens of the whole text so far: those before the prompt, of it, and those generated."""
        return self._before + len(self.prompt) + len(self.tokens)

    @property
    def is_paused(self) -> bool:
        """Whether nobody wants another token now."""
        return len(self.tokens) >= self.wanted

    @property
    def is_complete(self) -> bool:
        """Whether the text has a format after which nothing may follow.

        Raises:
            RequestError: see `Matcher.read`.
        """
        return isinstance(self.allowed, Matcher) and self.allowed.read(self.tokens)

    @property
    def adjusts(self) -> bool:
        """Whether `adjusted` changes logits."""
        return self.sampler.params.adjusts

    def adjusted(self, logits: Tensor) -> Tensor:
        """The logits (1, V) of the next token after biases, bans and penalties: float64, -inf for banned tokens.

        An error that it raises ends this request.
        """
        params = self.sampler.params
        if params.penalizes and self.history is None:
            self.history = History(1, logits.shape[-1], logits.device)
        return self.sampler.adjusted(logits, self.history)

    def accept(self, token: int) -> bool:
        """Called after each token that was added to `tokens`; returns whether to generate further ones."""
        return True

    def mark(self, snapshot: Callable[[], State]) -> None:
        """Called after `accept` if `wants_state`; `snapshot` copies the state before the token that was added last."""

    def end(self) -> None:
        """Called once, when `finish_reason` has been set."""
